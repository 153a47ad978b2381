/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRONIC_DMA_SHIM_H
#define FERRONIC_DMA_SHIM_H

#include <linux/dma-direction.h>
#include <linux/types.h>

struct device;
struct page;

dma_addr_t ferronic_dma_map_single(struct device *dev, void *start, size_t len,
				   enum dma_data_direction direction);
dma_addr_t ferronic_dma_map_page(struct device *dev, struct page *page,
				 size_t offset, size_t len,
				 enum dma_data_direction direction);
void ferronic_dma_unmap(struct device *dev, dma_addr_t addr, size_t len,
			enum dma_data_direction direction);
void ferronic_dma_sync_for_cpu(struct device *dev, dma_addr_t addr, size_t len,
			       enum dma_data_direction direction);
void ferronic_dma_sync_for_device(struct device *dev, dma_addr_t addr, size_t len,
				  enum dma_data_direction direction);
bool ferronic_dma_is_translated(struct device *dev);

#endif
