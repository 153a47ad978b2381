/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRONIC_SHIM_H
#define FERRONIC_SHIM_H

#include <linux/netdevice.h>
#include <linux/pci.h>

void ferronic_pci_clear_master(struct pci_dev *pdev);

#endif
