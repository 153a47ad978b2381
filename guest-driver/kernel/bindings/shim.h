/* SPDX-License-Identifier: GPL-2.0 */
#ifndef FERRONIC_SHIM_H
#define FERRONIC_SHIM_H

#include <linux/dim.h>
#include <linux/ethtool.h>
#include <linux/netdevice.h>
#include <linux/pci.h>
#include <linux/skbuff.h>
#include <linux/timer.h>
#include <net/page_pool/types.h>

/* A piece of memory for the device; struct Segment of dma/mod.rs. */
struct ferronic_segment {
	u64 addr;
	u32 len;
};

/* Room in a buffer for what build_skb() puts behind the data. */
enum {
	FERRONIC_SKB_TAIL = SKB_DATA_ALIGN(sizeof(struct skb_shared_info)),
	FERRONIC_MAX_SKB_FRAGS = MAX_SKB_FRAGS,
};

/* Bits that are expressions, which bindgen leaves out. */
enum {
	FERRONIC_COALESCE_USECS = ETHTOOL_COALESCE_USECS,
	FERRONIC_COALESCE_MAX_FRAMES = ETHTOOL_COALESCE_MAX_FRAMES,
	FERRONIC_COALESCE_USE_ADAPTIVE_RX = ETHTOOL_COALESCE_USE_ADAPTIVE_RX,
};

/* --- Fault injection */
bool ferronic_should_fail(void);

/* --- PCI, interrupts */
void ferronic_pci_disable(struct pci_dev *pdev);
void ferronic_irq_spread(struct pci_dev *pdev, unsigned int irq, unsigned int index);
void ferronic_irq_unspread(unsigned int irq);

/* --- net_device */
void *ferronic_netdev_priv(struct net_device *dev);
void ferronic_netdev_init(struct net_device *dev, struct device *parent,
			  const struct net_device_ops *ops,
			  const struct netdev_stat_ops *stat_ops);
void ferronic_set_address(struct net_device *dev, const u8 *address);
void ferronic_random_address(struct net_device *dev);
bool ferronic_running(const struct net_device *dev);
bool ferronic_carrier(const struct net_device *dev);
void ferronic_notify_peers(struct net_device *dev);
bool ferronic_ratelimit(void);
void ferronic_set_xps(struct net_device *dev, unsigned int queues);
void ferronic_tx_disable(struct net_device *dev);
void ferronic_queue_set_napi(struct net_device *dev, unsigned int index, bool tx,
			     struct napi_struct *napi);
void ferronic_rtnl_lock(void);
void ferronic_rtnl_unlock(void);

/* --- address lists */
unsigned int ferronic_hw_addr_count(const struct netdev_hw_addr_list *list);
unsigned int ferronic_hw_addr_copy(const struct netdev_hw_addr_list *list, u8 *to,
				   unsigned int max);

/* --- ndo_work, and a timer that schedules it */
void ferronic_work_sched(struct net_device *dev, unsigned long events);

struct ferronic_timer {
	struct timer_list timer;
	struct net_device *dev;
	atomic_long_t events;
};

void ferronic_timer_init(struct ferronic_timer *timer, struct net_device *dev);
void ferronic_timer_start(struct ferronic_timer *timer, unsigned long events,
			  unsigned int ms);
void ferronic_timer_shutdown(struct ferronic_timer *timer);

/* --- dynamic interrupt moderation that schedules ndo_work */
struct ferronic_dim {
	struct dim dim;
	struct net_device *dev;
	unsigned long events;
};

void ferronic_dim_init(struct ferronic_dim *dim, struct net_device *dev, unsigned long events);
void ferronic_dim_sample(struct ferronic_dim *dim, u16 interrupts, u64 packets, u64 bytes);
bool ferronic_dim_decision(struct ferronic_dim *dim, u32 *usecs, u32 *frames);
void ferronic_dim_go_on(struct ferronic_dim *dim);
void ferronic_dim_cancel(struct ferronic_dim *dim);

/* --- NAPI */
void ferronic_napi_add(struct net_device *dev, struct napi_struct *napi,
		       int (*poll)(struct napi_struct *, int), int index);
void ferronic_napi_add_tx(struct net_device *dev, struct napi_struct *napi,
			  int (*poll)(struct napi_struct *, int));
void ferronic_napi_del(struct napi_struct *napi);
void ferronic_napi_schedule_irqoff(struct napi_struct *napi);
void ferronic_napi_schedule(struct napi_struct *napi);
void ferronic_napi_schedule_process(struct napi_struct *napi);

enum ferronic_polling {
	/* By nobody. */
	FERRONIC_POLLING_OVER,
	/* By us, again. */
	FERRONIC_POLLING_OURS,
	/* By whoever comes next, or already has. */
	FERRONIC_POLLING_OTHERS,
};

enum ferronic_polling ferronic_napi_complete(struct napi_struct *napi, int work);
void ferronic_napi_set_irq(struct napi_struct *napi, int irq);

/* --- transmit queues */
struct netdev_queue *ferronic_txq(struct net_device *dev, unsigned int index);
void ferronic_txq_lock(struct netdev_queue *txq);
bool ferronic_txq_trylock(struct netdev_queue *txq);
void ferronic_txq_unlock(struct netdev_queue *txq);
void ferronic_txq_lock_bh(struct netdev_queue *txq);
void ferronic_txq_unlock_bh(struct netdev_queue *txq);
void ferronic_txq_stop(struct netdev_queue *txq);
void ferronic_txq_start(struct netdev_queue *txq);
void ferronic_txq_wake(struct netdev_queue *txq);
bool ferronic_txq_stopped(const struct netdev_queue *txq);
bool ferronic_txq_sent(struct netdev_queue *txq, unsigned int bytes);
void ferronic_txq_completed(struct netdev_queue *txq, unsigned int packets,
			    unsigned int bytes);
void ferronic_txq_reset(struct netdev_queue *txq);
bool ferronic_xmit_stopped(const struct netdev_queue *txq);
bool ferronic_xmit_more(void);

/* --- socket buffers */
unsigned int ferronic_skb_queue(const struct sk_buff *skb);
void ferronic_skb_free(struct sk_buff *skb, int budget);
void ferronic_skb_drop(struct sk_buff *skb);
u64 ferronic_skb_offload(const struct sk_buff *skb);
int ferronic_skb_make_ready(struct sk_buff *skb, unsigned int len);
int ferronic_skb_segments(struct sk_buff *skb, unsigned int headroom,
			  struct ferronic_segment *segments, unsigned int max);
struct page *ferronic_skb_frag(const struct sk_buff *skb, unsigned int index,
			       u32 *offset, u32 *len);
struct sk_buff *ferronic_skb_alloc(struct net_device *dev, const void *octets,
				   unsigned int len);
void ferronic_skb_queue_xmit(struct sk_buff *skb);
struct sk_buff *ferronic_skb_build(struct napi_struct *napi, void *start, unsigned int size,
				   unsigned int headroom, unsigned int len);
struct sk_buff *ferronic_skb_copy(struct napi_struct *napi, const void *from,
				  unsigned int len);
bool ferronic_skb_add_page(struct sk_buff *skb, struct sk_buff **tail, void *start,
			   unsigned int offset, unsigned int len, unsigned int size);
void ferronic_skb_checked(struct sk_buff *skb);
int ferronic_skb_set_offload(struct sk_buff *skb, u64 offload);
void ferronic_skb_set_hash(struct sk_buff *skb, u32 hash, bool l4);
void ferronic_skb_receive(struct napi_struct *napi, struct sk_buff *skb, unsigned int queue);

/* --- page pool */
struct page_pool *ferronic_pool_create(struct net_device *dev, struct device *dma,
				       unsigned int queue, unsigned int order, unsigned int size);
bool ferronic_pool_bind(struct page_pool *pool, struct napi_struct *napi);
void ferronic_pool_unbind(struct page_pool *pool);
void *ferronic_pool_alloc(struct page_pool *pool, const struct napi_struct *napi,
			  unsigned int size, dma_addr_t *addr);
void ferronic_pool_put(void *start);
void ferronic_pool_recycle(struct page_pool *pool, const struct napi_struct *napi, void *start);
void ferronic_pool_sync_for_cpu(struct page_pool *pool, void *start, unsigned int offset,
				unsigned int len);
void ferronic_pool_sync_for_device(struct page_pool *pool, dma_addr_t addr, unsigned int len);

#endif
