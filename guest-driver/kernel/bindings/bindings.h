/* SPDX-License-Identifier: GPL-2.0 */
/* What our own bindings are made from. */

#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/netdev_features.h>
#include <linux/netdevice.h>
#include <net/netdev_queues.h>
#include <net/page_pool/types.h>

#include "../dma/shim.h"
#include "shim.h"
