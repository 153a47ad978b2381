// SPDX-License-Identifier: GPL-2.0
/*
 * What of the DMA API is inline or a macro, as functions.
 */

#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/mm.h>

#include "shim.h"

/* Without dev the address is the physical one. DMA_MAPPING_ERROR if it fails. */
dma_addr_t ferronic_dma_map_single(struct device *dev, void *start, size_t len,
				   enum dma_data_direction direction)
{
	dma_addr_t addr;

	if (!dev)
		return virt_to_phys(start);
	addr = dma_map_single(dev, start, len, direction);
	return dma_mapping_error(dev, addr) ? DMA_MAPPING_ERROR : addr;
}

/* The same for a piece of a page, or of several that follow each other. */
dma_addr_t ferronic_dma_map_page(struct device *dev, struct page *page,
				 size_t offset, size_t len,
				 enum dma_data_direction direction)
{
	dma_addr_t addr;

	if (!dev)
		return page_to_phys(page) + offset;
	addr = dma_map_page(dev, page, offset, len, direction);
	return dma_mapping_error(dev, addr) ? DMA_MAPPING_ERROR : addr;
}

void ferronic_dma_unmap(struct device *dev, dma_addr_t addr, size_t len,
			enum dma_data_direction direction)
{
	dma_unmap_page(dev, addr, len, direction);
}

void ferronic_dma_sync_for_cpu(struct device *dev, dma_addr_t addr, size_t len,
			       enum dma_data_direction direction)
{
	dma_sync_single_for_cpu(dev, addr, len, direction);
}

void ferronic_dma_sync_for_device(struct device *dev, dma_addr_t addr, size_t len,
				  enum dma_data_direction direction)
{
	dma_sync_single_for_device(dev, addr, len, direction);
}

/* Whether the addresses that the DMA API hands out are translated on the way to memory. */
bool ferronic_dma_is_translated(struct device *dev)
{
	return dev_dma_iommu(dev) || (get_dma_ops(dev) && !dev_dma_ops_bypass(dev));
}
