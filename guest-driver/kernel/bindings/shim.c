// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel's headers have as inline functions or macros, which bindgen cannot
 * call, and for what the kernel crate has no abstraction of.
 */

#include "shim.h"

void ferronic_pci_clear_master(struct pci_dev *pdev)
{
	pci_clear_master(pdev);
	pci_disable_device(pdev);
}
