// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the kernel's headers have as inline functions or macros, which bindgen cannot
 * call. On the way of a packet one call does as much as belongs together: a call is what costs.
 */

#include <linux/cpumask.h>
#include <linux/etherdevice.h>
#include <linux/fault-inject.h>
#include <linux/interrupt.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/netdev_queues.h>
#include <net/page_pool/helpers.h>

#include "shim.h"

/* --- Fault injection */

/* Nothing fails by chance (probability), only the n-th time where a test says so; and quietly. */
static struct fault_attr __maybe_unused ferronic_fault;

bool ferronic_should_fail(void)
{
	return should_fail(&ferronic_fault, 1);
}

/* --- PCI, interrupts */

void ferronic_pci_disable(struct pci_dev *pdev)
{
	pci_clear_master(pdev);
	pci_disable_device(pdev);
}

/* The interrupt goes to the index-th of the CPUs, those near the device first. */
void ferronic_irq_spread(struct pci_dev *pdev, unsigned int irq, unsigned int index)
{
	unsigned int cpu = cpumask_local_spread(index % num_online_cpus(),
						dev_to_node(&pdev->dev));

	irq_set_affinity_and_hint(irq, cpumask_of(cpu));
}

void ferronic_irq_unspread(unsigned int irq)
{
	irq_update_affinity_hint(irq, NULL);
}

/* --- net_device */

void *ferronic_netdev_priv(struct net_device *dev)
{
	return netdev_priv(dev);
}

void ferronic_netdev_init(struct net_device *dev, struct device *parent,
			  const struct net_device_ops *ops,
			  const struct netdev_stat_ops *stat_ops)
{
	SET_NETDEV_DEV(dev, parent);
	dev->netdev_ops = ops;
	dev->stat_ops = stat_ops;
	dev->watchdog_timeo = 5 * HZ;
	dev->priv_flags |= IFF_UNICAST_FLT | IFF_LIVE_ADDR_CHANGE;
	dev->priv_flags &= ~IFF_TX_SKB_SHARING;
}

void ferronic_set_address(struct net_device *dev, const u8 *address)
{
	eth_hw_addr_set(dev, address);
}

void ferronic_random_address(struct net_device *dev)
{
	eth_hw_addr_random(dev);
}

bool ferronic_running(const struct net_device *dev)
{
	return netif_running(dev);
}

bool ferronic_carrier(const struct net_device *dev)
{
	return netif_carrier_ok(dev);
}

/* RTNL held. */
void ferronic_notify_peers(struct net_device *dev)
{
	call_netdevice_notifiers(NETDEV_NOTIFY_PEERS, dev);
}

bool ferronic_ratelimit(void)
{
	return net_ratelimit();
}

/* Every CPU sends on the queue whose interrupt it gets, as far as there are so many. */
void ferronic_set_xps(struct net_device *dev, unsigned int queues)
{
	cpumask_var_t mask;
	unsigned int queue, cpu, i;

	if (!queues || !zalloc_cpumask_var(&mask, GFP_KERNEL))
		return;
	cpus_read_lock();
	for (queue = 0; queue < queues; queue++) {
		cpumask_clear(mask);
		for (i = queue; i < num_online_cpus(); i += queues) {
			cpu = cpumask_local_spread(i, dev_to_node(dev->dev.parent));
			cpumask_set_cpu(cpu, mask);
		}
		/* More queues than CPUs: some are left for the hash to choose. */
		if (!cpumask_empty(mask))
			__netif_set_xps_queue(dev, cpumask_bits(mask), queue, XPS_CPUS);
	}
	cpus_read_unlock();
	free_cpumask_var(mask);
}

void ferronic_tx_disable(struct net_device *dev)
{
	netif_tx_disable(dev);
}

void ferronic_queue_set_napi(struct net_device *dev, unsigned int index, bool tx,
			     struct napi_struct *napi)
{
	netif_queue_set_napi(dev, index, tx ? NETDEV_QUEUE_TYPE_TX : NETDEV_QUEUE_TYPE_RX, napi);
}

void ferronic_rtnl_lock(void)
{
	rtnl_lock();
}

void ferronic_rtnl_unlock(void)
{
	rtnl_unlock();
}

/* --- address lists */

unsigned int ferronic_hw_addr_count(const struct netdev_hw_addr_list *list)
{
	return netdev_hw_addr_list_count(list);
}

/* Copies up to max addresses of 6 octets; returns how many. */
unsigned int ferronic_hw_addr_copy(const struct netdev_hw_addr_list *list, u8 *to,
				   unsigned int max)
{
	const struct netdev_hw_addr *ha;
	unsigned int n = 0;

	netdev_hw_addr_list_for_each(ha, list) {
		if (n == max)
			break;
		memcpy(to + n++ * ETH_ALEN, ha->addr, ETH_ALEN);
	}
	return n;
}

/* --- timer that schedules ndo_work */

/*
 * Nothing for a device that is not registered yet, or not any more: the kernel's list of devices with
 * work to do does not keep those alive.
 */
void ferronic_work_sched(struct net_device *dev, unsigned long events)
{
	if (READ_ONCE(dev->reg_state) == NETREG_REGISTERED)
		netdev_work_sched(dev, events);
}

static void ferronic_timer_fire(struct timer_list *t)
{
	struct ferronic_timer *timer = timer_container_of(timer, t, timer);

	ferronic_work_sched(timer->dev, atomic_long_xchg(&timer->events, 0));
}

void ferronic_timer_init(struct ferronic_timer *timer, struct net_device *dev)
{
	timer_setup(&timer->timer, ferronic_timer_fire, 0);
	timer->dev = dev;
	atomic_long_set(&timer->events, 0);
}

/* A timer that runs already does not run longer. */
void ferronic_timer_start(struct ferronic_timer *timer, unsigned long events,
			  unsigned int ms)
{
	atomic_long_or(events, &timer->events);
	if (timer_pending(&timer->timer))
		return;
	mod_timer(&timer->timer, jiffies + msecs_to_jiffies(ms));
}

void ferronic_timer_shutdown(struct ferronic_timer *timer)
{
	timer_shutdown_sync(&timer->timer);
}

/* --- dynamic interrupt moderation that schedules ndo_work */

static void ferronic_dim_work(struct work_struct *work)
{
	struct ferronic_dim *dim = container_of(work, struct ferronic_dim, dim.work);

	netdev_work_sched(dim->dev, dim->events);
}

void ferronic_dim_init(struct ferronic_dim *dim, struct net_device *dev, unsigned long events)
{
	memset(dim, 0, sizeof(*dim));
	INIT_WORK(&dim->dim.work, ferronic_dim_work);
	dim->dim.mode = DIM_CQ_PERIOD_MODE_START_FROM_EQE;
	dim->dev = dev;
	dim->events = events;
}

/* From one context at a time. */
void ferronic_dim_sample(struct ferronic_dim *dim, u16 interrupts, u64 packets, u64 bytes)
{
	struct dim_sample sample = {};

	dim_update_sample(interrupts, packets, bytes, &sample);
	net_dim(&dim->dim, &sample);
}

/* While there is a decision net_dim() changes nothing. */
bool ferronic_dim_decision(struct ferronic_dim *dim, u32 *usecs, u32 *frames)
{
	struct dim_cq_moder moder;

	if (READ_ONCE(dim->dim.state) != DIM_APPLY_NEW_PROFILE)
		return false;
	moder = net_dim_get_rx_moderation(dim->dim.mode, dim->dim.profile_ix);
	*usecs = moder.usec;
	*frames = moder.pkts;
	return true;
}

void ferronic_dim_go_on(struct ferronic_dim *dim)
{
	WRITE_ONCE(dim->dim.state, DIM_START_MEASURE);
}

void ferronic_dim_cancel(struct ferronic_dim *dim)
{
	cancel_work_sync(&dim->dim.work);
}

/* --- NAPI */

/* Keeps its identifier and settings when it is disabled. */
void ferronic_napi_add(struct net_device *dev, struct napi_struct *napi,
		       int (*poll)(struct napi_struct *, int), int index)
{
	netif_napi_add_config(dev, napi, poll, index);
}

void ferronic_napi_add_tx(struct net_device *dev, struct napi_struct *napi,
			  int (*poll)(struct napi_struct *, int))
{
	netif_napi_add_tx(dev, napi, poll);
}

void ferronic_napi_del(struct napi_struct *napi)
{
	netif_napi_del(napi);
}

void ferronic_napi_schedule_irqoff(struct napi_struct *napi)
{
	napi_schedule_irqoff(napi);
}

void ferronic_napi_schedule(struct napi_struct *napi)
{
	napi_schedule(napi);
}

/* In process context, where softirqs would otherwise not run soon. */
void ferronic_napi_schedule_process(struct napi_struct *napi)
{
	local_bh_disable();
	napi_schedule(napi);
	local_bh_enable();
}

/*
 * Whose the instance is after polling is done. There are three cases in which napi_complete_done()
 * returns false, but only one in which nobody else polls: someone who polls on purpose has called us.
 */
enum ferronic_polling ferronic_napi_complete(struct napi_struct *napi, int work)
{
	bool on_purpose = READ_ONCE(napi->state) &
			  (NAPIF_STATE_NPSVC | NAPIF_STATE_IN_BUSY_POLL);

	if (napi_complete_done(napi, work))
		return FERRONIC_POLLING_OVER;
	return on_purpose ? FERRONIC_POLLING_OURS : FERRONIC_POLLING_OTHERS;
}

void ferronic_napi_set_irq(struct napi_struct *napi, int irq)
{
	netif_napi_set_irq(napi, irq);
}

/* --- transmit queues */

struct netdev_queue *ferronic_txq(struct net_device *dev, unsigned int index)
{
	return netdev_get_tx_queue(dev, index);
}

void ferronic_txq_lock(struct netdev_queue *txq)
{
	__netif_tx_lock(txq, raw_smp_processor_id());
}

bool ferronic_txq_trylock(struct netdev_queue *txq)
{
	return __netif_tx_trylock(txq);
}

void ferronic_txq_unlock(struct netdev_queue *txq)
{
	__netif_tx_unlock(txq);
}

void ferronic_txq_lock_bh(struct netdev_queue *txq)
{
	__netif_tx_lock_bh(txq);
}

void ferronic_txq_unlock_bh(struct netdev_queue *txq)
{
	__netif_tx_unlock_bh(txq);
}

void ferronic_txq_stop(struct netdev_queue *txq)
{
	netif_tx_stop_queue(txq);
}

void ferronic_txq_start(struct netdev_queue *txq)
{
	netif_tx_start_queue(txq);
}

void ferronic_txq_wake(struct netdev_queue *txq)
{
	netif_tx_wake_queue(txq);
}

bool ferronic_txq_stopped(const struct netdev_queue *txq)
{
	return netif_tx_queue_stopped(txq);
}

/* For ndo_start_xmit only. Whether the device must be told of the packet now. */
bool ferronic_txq_sent(struct netdev_queue *txq, unsigned int bytes)
{
	return __netdev_tx_sent_queue(txq, bytes, netdev_xmit_more());
}

void ferronic_txq_completed(struct netdev_queue *txq, unsigned int packets,
			    unsigned int bytes)
{
	netdev_tx_completed_queue(txq, packets, bytes);
}

void ferronic_txq_reset(struct netdev_queue *txq)
{
	netdev_tx_reset_queue(txq);
}

bool ferronic_xmit_stopped(const struct netdev_queue *txq)
{
	return netif_xmit_stopped(txq);
}

/* For ndo_start_xmit only. */
bool ferronic_xmit_more(void)
{
	return netdev_xmit_more();
}

/* --- socket buffers */

unsigned int ferronic_skb_queue(const struct sk_buff *skb)
{
	return skb_get_queue_mapping(skb);
}

void ferronic_skb_free(struct sk_buff *skb, int budget)
{
	napi_consume_skb(skb, budget);
}

void ferronic_skb_drop(struct sk_buff *skb)
{
	dev_kfree_skb_any(skb);
}

/*
 * What the device is to do with a packet, as in the header of VIRTIO 1.3, 5.1.6, but packed in the
 * processor's byte order: flags, gso_type, gso_size, csum_start, csum_offset, from the least
 * significant bit on. All ones for what that cannot express.
 */
u64 ferronic_skb_offload(const struct sk_buff *skb)
{
	struct virtio_net_hdr hdr;

	if (likely(skb->ip_summed != CHECKSUM_PARTIAL && !skb_is_gso(skb)))
		return 0;
	if (virtio_net_hdr_from_skb(skb, &hdr, true, false, 0))
		return ~0ULL;
	return hdr.flags | (u64)hdr.gso_type << 8 |
	       (u64)__virtio16_to_cpu(true, hdr.gso_size) << 16 |
	       (u64)__virtio16_to_cpu(true, hdr.csum_start) << 32 |
	       (u64)__virtio16_to_cpu(true, hdr.csum_offset) << 48;
}

/* Makes len octets before the data this packet's own. Notes when it was sent, if someone asked. */
int ferronic_skb_make_ready(struct sk_buff *skb, unsigned int len)
{
	skb_tx_timestamp(skb);
	if (likely(skb_headroom(skb) >= len && !skb_header_cloned(skb)))
		return 0;
	return skb_cow_head(skb, len);
}

/*
 * The physical addresses of headroom octets before the data, the data, and the fragments. Returns
 * how many pieces, or -1 if there are more than max.
 */
int ferronic_skb_segments(struct sk_buff *skb, unsigned int headroom,
			  struct ferronic_segment *segments, unsigned int max)
{
	const struct skb_shared_info *info = skb_shinfo(skb);
	unsigned int i, n = 1;

	if (unlikely(info->nr_frags >= max || info->frag_list))
		return -1;
	segments->addr = virt_to_phys(skb->data - headroom);
	segments->len = skb_headlen(skb) + headroom;
	for (i = 0; i < info->nr_frags; i++) {
		const skb_frag_t *frag = &info->frags[i];

		segments[n].addr = page_to_phys(skb_frag_page(frag)) + skb_frag_off(frag);
		segments[n].len = skb_frag_size(frag);
		n++;
	}
	return n;
}

/* The page of a fragment, NULL if there are not so many. */
struct page *ferronic_skb_frag(const struct sk_buff *skb, unsigned int index,
			       u32 *offset, u32 *len)
{
	const struct skb_shared_info *info = skb_shinfo(skb);
	const skb_frag_t *frag = &info->frags[index];

	if (index >= info->nr_frags)
		return NULL;
	*offset = skb_frag_off(frag);
	*len = skb_frag_size(frag);
	return skb_frag_page(frag);
}

/* A frame to be sent. */
struct sk_buff *ferronic_skb_alloc(struct net_device *dev, const void *octets,
				   unsigned int len)
{
	unsigned int headroom = LL_RESERVED_SPACE(dev);
	struct sk_buff *skb;

	if (len < ETH_HLEN)
		return NULL;
	skb = alloc_skb(headroom + len, GFP_KERNEL);
	if (skb) {
		skb_reserve(skb, headroom);
		skb_put_data(skb, octets, len);
		skb_reset_mac_header(skb);
		skb_set_network_header(skb, ETH_HLEN);
		skb->protocol = eth_hdr(skb)->h_proto;
		skb->dev = dev;
	}
	return skb;
}

void ferronic_skb_queue_xmit(struct sk_buff *skb)
{
	dev_queue_xmit(skb);
}

/* A packet of len octets in a page pool's buffer, behind headroom octets. NAPI context. */
struct sk_buff *ferronic_skb_build(struct napi_struct *napi, void *start, unsigned int size,
				   unsigned int headroom, unsigned int len)
{
	struct sk_buff *skb = napi_build_skb(start, size);

	if (likely(skb)) {
		skb_reserve(skb, headroom);
		__skb_put(skb, len);
		skb_mark_for_recycle(skb);
		/* virtio_net_hdr_to_skb() goes by it for some headers. */
		skb->dev = napi->dev;
	}
	return skb;
}

struct sk_buff *ferronic_skb_copy(struct napi_struct *napi, const void *from,
				  unsigned int len)
{
	struct sk_buff *skb = napi_alloc_skb(napi, len);

	if (likely(skb)) {
		skb_put_data(skb, from, len);
		/* Fragments may follow that are the pool's. */
		skb_mark_for_recycle(skb);
	}
	return skb;
}

/*
 * Adds a piece of a page pool's buffer to a packet whose last part is *tail, which is the packet
 * itself at first. A part that has all the fragments it can have is followed by another, in the
 * packet's list of parts. False if there is no memory, or the packet is none that gives buffers back to
 * pools; then nothing is done.
 */
bool ferronic_skb_add_page(struct sk_buff *skb, struct sk_buff **tail, void *start,
			   unsigned int offset, unsigned int len, unsigned int size)
{
	struct sk_buff *last = *tail, *part;
	struct page *page = virt_to_head_page(start);

	if (unlikely(!last->pp_recycle))
		return false;
	if (unlikely(skb_shinfo(last)->nr_frags == MAX_SKB_FRAGS)) {
		part = alloc_skb(0, GFP_ATOMIC | __GFP_NOWARN);
		if (!part)
			return false;
		skb_mark_for_recycle(part);
		if (last == skb)
			skb_shinfo(skb)->frag_list = part;
		else
			last->next = part;
		skb->truesize += part->truesize;
		*tail = last = part;
	}
	skb_add_rx_frag(last, skb_shinfo(last)->nr_frags, page,
			start - page_address(page) + offset, len, size);
	if (last != skb) {
		skb->len += len;
		skb->data_len += len;
		skb->truesize += size;
	}
	return true;
}

void ferronic_skb_checked(struct sk_buff *skb)
{
	skb->ip_summed = CHECKSUM_UNNECESSARY;
}

/* The reverse of ferronic_skb_offload(), before the Ethernet header is taken off. */
int ferronic_skb_set_offload(struct sk_buff *skb, u64 offload)
{
	struct virtio_net_hdr hdr = {
		.flags = offload & 0xff,
		.gso_type = offload >> 8 & 0xff,
		.gso_size = __cpu_to_virtio16(true, offload >> 16 & 0xffff),
		.csum_start = __cpu_to_virtio16(true, offload >> 32 & 0xffff),
		.csum_offset = __cpu_to_virtio16(true, offload >> 48),
	};

	return virtio_net_hdr_to_skb(skb, &hdr, true);
}

void ferronic_skb_set_hash(struct sk_buff *skb, u32 hash, bool l4)
{
	skb_set_hash(skb, hash, l4 ? PKT_HASH_TYPE_L4 : PKT_HASH_TYPE_L3);
}

void ferronic_skb_receive(struct napi_struct *napi, struct sk_buff *skb, unsigned int queue)
{
	skb_record_rx_queue(skb, queue);
	skb->protocol = eth_type_trans(skb, napi->dev);
	napi_gro_receive(napi, skb);
}

/* --- page pool */

struct page_pool *ferronic_pool_create(struct net_device *dev, struct device *dma,
				       unsigned int queue, unsigned int order, unsigned int size)
{
	struct page_pool_params params = {
		.order = order,
		.pool_size = size,
		.nid = NUMA_NO_NODE,
		.dev = dma,
		.netdev = dev,
		.queue_idx = queue,
		.dma_dir = DMA_FROM_DEVICE,
		.max_len = PAGE_SIZE << order,
		.offset = 0,
		.flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV,
	};

	return page_pool_create(&params);
}

/*
 * From now on pages that are freed where the instance is polled come back without a lock. Keeps the
 * pool. The instance is disabled. False if the pool is bound already.
 */
bool ferronic_pool_bind(struct page_pool *pool, struct napi_struct *napi)
{
	if (pool->p.napi)
		return false;
	page_pool_get(pool);
	page_pool_enable_direct_recycling(pool, napi);
	return true;
}

/* Undoes that. The instance is disabled. */
void ferronic_pool_unbind(struct page_pool *pool)
{
	page_pool_disable_direct_recycling(pool);
	page_pool_destroy(pool);
}

/*
 * A buffer and its address for the device. Only where the instance is polled that the pool is bound
 * to, or with NULL if it is not bound.
 */
void *ferronic_pool_alloc(struct page_pool *pool, const struct napi_struct *napi,
			  unsigned int size, dma_addr_t *addr)
{
	gfp_t gfp = GFP_ATOMIC | __GFP_NOWARN;
	unsigned int offset = 0;
	struct page *page;

	if (unlikely(pool->p.napi != napi))
		return NULL;
	if (size << 1 > PAGE_SIZE << pool->p.order)
		page = page_pool_alloc_pages(pool, gfp);
	else
		page = page_pool_alloc_frag(pool, &offset, size, gfp);
	if (unlikely(!page))
		return NULL;
	*addr = page_pool_get_dma_addr(page) + offset;
	return page_address(page) + offset;
}

void ferronic_pool_put(void *start)
{
	struct page *page = virt_to_head_page(start);

	page_pool_put_full_page(pp_page_to_nmdesc(page)->pp, page, false);
}

/* The same, more cheaply where a buffer could be had. The buffer may be another pool's. */
void ferronic_pool_recycle(struct page_pool *pool, const struct napi_struct *napi, void *start)
{
	struct page *page = virt_to_head_page(start);
	struct page_pool *owner = pp_page_to_nmdesc(page)->pp;

	page_pool_put_full_page(owner, page, owner == pool && pool->p.napi == napi);
}

void ferronic_pool_sync_for_cpu(struct page_pool *pool, void *start, unsigned int offset,
				unsigned int len)
{
	struct page *page = virt_to_head_page(start);

	page_pool_dma_sync_for_cpu(pool, page, start - page_address(page) + offset, len);
}

void ferronic_pool_sync_for_device(struct page_pool *pool, dma_addr_t addr, unsigned int len)
{
	dma_sync_single_for_device(pool->p.dev, addr, len, DMA_FROM_DEVICE);
}
