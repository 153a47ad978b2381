/* SPDX-License-Identifier: GPL-2.0 */
/* What our own bindings are made from. */

#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/netdev_queues.h>
#include <uapi/linux/virtio_net.h>

#include "../dma/shim.h"
#include "shim.h"
