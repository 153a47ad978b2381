// SPDX-License-Identifier: GPL-2.0

//! The net device: what the networking core asks for.

use super::{
    config,
    control,
    ethtool::Messages,
    features,
    lifecycle::Driven,
    rss::Rss,
    rx::RxPoll,
    stats::{
        RxStats,
        TxStats, //
    },
    tx::TxPoll,
    Found,
    Work, //
};
use crate::{
    irq::Interrupts,
    net::{
        self,
        ethtool::{
            Coalesce,
            LinkSettings, //
        },
        Address,
        Addresses,
        BaseStats,
        Busy,
        Device,
        DeviceStats,
        Napi,
        Operations,
        QueueStatsRx,
        QueueStatsTx,
        Setup,
        SkBuff,
        TxQueue,
        XmitQueue, //
    },
    virtio::{
        Status,
        Transport, //
    }, //
};
use kernel::{
    device::Bound,
    new_mutex,
    pci,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        Mutex, //
    }, //
};

/// One queue in each direction.
pub(super) struct Pair<'a> {
    pub(super) rx: Arc<Napi<RxPoll<'a>>>,
    pub(super) tx: Arc<Napi<TxPoll<'a>>>,
}

/// What the networking core wants of the device, to be told again after a reset.
pub(super) struct Wishes {
    /// The interface is up.
    pub(super) open: bool,
    /// So many pairs are used.
    pub(super) pairs: u16,
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) unicast: KVec<Address>,
    pub(super) multicast: KVec<Address>,
    /// One bit for each VLAN.
    pub(super) vlans: KVec<u64>,
    /// Features that are on.
    pub(super) features: net::Features,
    /// Descriptors in each queue; 0: as many as the device thinks best.
    pub(super) rx_size: u16,
    pub(super) tx_size: u16,
    /// How received packets are spread over queues, where the device lets us choose.
    pub(super) rss: Option<Rss>,
    /// How interrupts are held back where nothing else was said of a pair.
    pub(super) coalesce: Coalesce,
    /// The same of each pair.
    pub(super) pair_coalesce: KVec<Coalesce>,
    /// What the user says of the link.
    pub(super) link: Option<LinkSettings>,
}

/// What only one context at a time may do.
pub(super) struct Control<'a> {
    pub(super) wishes: Wishes,
    /// The device, unless it is dead.
    pub(super) driven: Option<Driven<'a>>,
    pub(super) recovery: super::lifecycle::Recovery,
}

/// A network card.
#[pin_data]
pub(crate) struct Nic<'a> {
    pub(super) pdev: &'a pci::Device<Bound>,
    pub(super) interrupts: Arc<Interrupts<'a>>,
    pub(super) transport: Arc<Transport<'a>>,
    /// All that there can be.
    pub(super) pairs: KVec<Pair<'a>>,
    #[pin]
    pub(super) control: Mutex<Control<'a>>,
    pub(super) messages: Messages,
}

impl<'a> Nic<'a> {
    /// A card that is not driven yet.
    pub(super) fn new(
        found: Found<'a>,
        dev: &Setup<'_, Self>,
    ) -> Result<impl PinInit<Self, Error> + use<'a>> {
        let Found {
            pdev,
            interrupts,
            transport,
            pairs,
        } = found;
        let mut list = KVec::with_capacity(pairs.into(), GFP_KERNEL)?;
        for index in 0..u32::from(pairs) {
            let tx = TxPoll {
                index,
                stats: TxStats::default(),
                cell: TxQueue::new(dev, index)?,
                dev: dev.weak(),
                pdev,
                busy: Atomic::new(false),
            };
            let tx = Arc::pin_init(Napi::new_tx(dev, tx), GFP_KERNEL)?;
            let rx = RxPoll {
                index,
                stats: RxStats::default(),
                adaptive: Atomic::new(false),
                tx: tx.clone(),
                dev: dev.weak(),
                pdev,
            };
            let rx = Arc::pin_init(Napi::new(dev, index, rx)?, GFP_KERNEL)?;
            list.push(Pair { rx, tx }, GFP_KERNEL)?;
        }
        let mut vlans = KVec::new();
        vlans.resize(VLANS / 64, 0, GFP_KERNEL)?;
        let control = Control {
            wishes: Wishes {
                open: false,
                pairs,
                promiscuous: false,
                all_multicast: false,
                unicast: KVec::new(),
                multicast: KVec::new(),
                vlans,
                features: net::Features::NONE,
                rx_size: 0,
                tx_size: 0,
                rss: None,
                coalesce: Coalesce::default(),
                pair_coalesce: KVec::from_elem(Coalesce::default(), pairs.into(), GFP_KERNEL)?,
                link: None,
            },
            driven: None,
            recovery: Default::default(),
        };
        Ok(try_pin_init!(Self {
            pdev,
            interrupts,
            transport,
            pairs: list,
            control <- new_mutex!(control, "ferronic::control"),
            messages: Messages::new(),
        }? Error))
    }

    /// Sets up the device and its net device, before that is registered.
    pub(super) fn start(&self, dev: &Setup<'_, Self>) -> Result {
        let mut control = self.control.lock();
        let mut driven = self.drive(dev, &control.wishes)?;
        let fixed = driven.fixed;
        let netdev = features::netdev_features(driven.features);
        dev.set_features(netdev.on, netdev.changeable, netdev.vlan);
        // A device that says what its MTU is wants that one, as Linux's own driver has it.
        let mtu = if driven.features.contains(features::MTU) {
            driven.max_mtu()
        } else {
            config::ETHERNET_MTU.min(driven.max_mtu())
        };
        dev.set_mtu_range(config::MIN_MTU, driven.max_mtu(), mtu);
        if !driven.buffers_fit(mtu) {
            self.take_back(driven);
            driven = self.drive(dev, &control.wishes)?;
        }
        dev.set_ethtool_ops();
        dev.set_headroom(super::header::LENGTH as u16);
        match fixed.address {
            Some(address) => dev.set_address(&address),
            None => dev.set_random_address(),
        }
        let pairs = self.default_pairs(&driven);
        control.wishes.features = netdev.on;
        control.wishes.pairs = pairs;
        control.wishes.rss = fixed
            .rss
            .map(|limits| Rss::new(limits, pairs))
            .transpose()?;
        control.driven = Some(driven);
        dev.set_queue_pairs(pairs.into())?;
        dev.set_carrier(false);
        if fixed.address.is_none() {
            // The device has to know what it is called.
            let _ = self.tell_address(&mut control, &dev.address());
        }
        match self.tell_pairs(&mut control) {
            Err(error) if error == EOPNOTSUPP && control.wishes.rss.is_some() => {
                dev_warn!(
                    self.pdev,
                    "device refuses to spread packets by their hashes\n"
                );
                control.wishes.rss = None;
                self.tell_pairs(&mut control)
            }
            result => result,
        }
    }

    /// Sends a command with the device's control queue. `EOPNOTSUPP` if there is none.
    pub(super) fn command(
        &self,
        control: &mut Control<'a>,
        command: control::Command,
        data: &[u8],
    ) -> Result {
        let driven = control.driven.as_mut().ok_or(ENODEV)?;
        let queue = driven.control.as_mut().ok_or(EOPNOTSUPP)?;
        queue.execute(command, data)
    }

    /// Asks for a reset if the control queue can no longer be used.
    pub(super) fn check_control(&self, dev: &Device<Self>, control: &Control<'a>) {
        let queue = control.driven.as_ref().and_then(|d| d.control.as_ref());
        if queue.is_some_and(|queue| queue.is_stuck()) {
            if net::ratelimit() {
                dev_err!(self.pdev, "control queue: device does not answer\n");
            }
            dev.schedule_work(Work::RESET);
        }
    }

    fn tell_address(&self, control: &mut Control<'a>, address: &Address) -> Result {
        let driven = control.driven.as_ref().ok_or(ENODEV)?;
        if driven.features.contains(features::CTRL_MAC_ADDR) {
            return self.command(control, control::MAC_ADDR_SET, address);
        }
        if driven.features.contains(features::MAC) {
            // 5.1.4.2: the field is read-only in modern devices, but some let it be written.
            return Err(EOPNOTSUPP);
        }
        config::write_address(&self.transport, *address)
    }

    /// Tells the device how many pairs are used, and how received packets are spread over them.
    pub(super) fn tell_pairs(&self, control: &mut Control<'a>) -> Result {
        let driven = control.driven.as_ref().ok_or(ENODEV)?;
        let pairs = control.wishes.pairs;
        if let (Some(rss), Some(limits)) = (&control.wishes.rss, driven.fixed.rss) {
            if rss.limits != limits {
                // It was another when we looked at it first.
                return Err(EINVAL);
            }
            let config = rss.encode(pairs)?;
            return self.command(control, control::MQ_RSS_CONFIG, &config);
        }
        if !driven.features.contains(features::MQ) {
            return Ok(());
        }
        self.command(control, control::MQ_PAIRS_SET, &pairs.to_le_bytes())
    }

    /// Tells the device which frames are wanted.
    fn tell_rx_mode(&self, control: &mut Control<'a>) -> Result {
        let driven = control.driven.as_mut().ok_or(ENODEV)?;
        if !driven.features.contains(features::CTRL_RX) {
            return Ok(());
        }
        let queue = driven.control.as_mut().ok_or(EOPNOTSUPP)?;
        let wishes = &control.wishes;
        // What does not fit into one table is wanted all.
        let unicast_fits = wishes.unicast.len() <= control::MAX_ADDRESSES;
        let room = control::MAX_ADDRESSES.saturating_sub(wishes.unicast.len());
        let multicast_fits = wishes.multicast.len() <= room;
        let promiscuous = wishes.promiscuous || !unicast_fits;
        let all_multicast = wishes.all_multicast || !multicast_fits;
        queue.execute(control::RX_PROMISC, &[promiscuous.into()])?;
        queue.execute(control::RX_ALLMULTI, &[all_multicast.into()])?;
        let unicast: &[Address] = if unicast_fits { &wishes.unicast } else { &[] };
        let multicast: &[Address] = if multicast_fits {
            &wishes.multicast
        } else {
            &[]
        };
        queue.set_addresses(unicast, multicast)
    }

    /// Tells the device which offloads of received packets are on.
    fn tell_offloads(&self, control: &mut Control<'a>) -> Result {
        let driven = control.driven.as_ref().ok_or(ENODEV)?;
        if !driven.features.contains(features::CTRL_GUEST_OFFLOADS) {
            return Ok(());
        }
        let offloads = features::guest_offloads(driven.features, control.wishes.features);
        self.command(
            control,
            control::GUEST_OFFLOADS_SET,
            &offloads.to_le_bytes(),
        )
    }

    /// Tells the device all that it was told before it was reset.
    pub(super) fn tell_all(&self, control: &mut Control<'a>, address: &Address) -> Result {
        self.tell_pairs(control)?;
        // A device whose address cannot be set has kept it.
        match self.tell_address(control, address) {
            Err(error) if error != EOPNOTSUPP && error != EINVAL => return Err(error),
            _ => {}
        }
        // It may refuse now what it has refused before, and work none the less.
        let may_refuse = |result: Result| match result {
            Err(error) if error == EOPNOTSUPP => Ok(()),
            result => result,
        };
        may_refuse(self.tell_rx_mode(control))?;
        may_refuse(self.tell_offloads(control))?;
        may_refuse(self.tell_coalesce_again(control))?;
        let filters = control
            .driven
            .as_ref()
            .is_some_and(|driven| driven.features.contains(features::CTRL_VLAN));
        for vid in 0..VLANS as u16 {
            let known = control.wishes.vlans.get(usize::from(vid / 64));
            if filters && known.is_some_and(|bits| bits >> (vid % 64) & 1 != 0) {
                may_refuse(self.command(control, control::VLAN_ADD, &vid.to_le_bytes()))?;
            }
        }
        Ok(())
    }

    fn tell_vlan(&self, dev: &Device<Self>, vid: u16, wanted: bool) -> Result {
        let mut control = self.control.lock();
        let command = if wanted {
            control::VLAN_ADD
        } else {
            control::VLAN_DEL
        };
        let result = self.command(&mut control, command, &vid.to_le_bytes());
        // What was not added the core does not want any longer.
        let noted = wanted && result.is_ok();
        if let Some(bits) = control.wishes.vlans.get_mut(usize::from(vid / 64)) {
            let bit = 1 << (vid % 64);
            *bits = if noted { *bits | bit } else { *bits & !bit };
        }
        self.check_control(dev, &control);
        result
    }

    /// Looks at the link, and whether the device needs a reset.
    fn configuration_changed(&self, dev: &Device<Self>) {
        let mut control = self.control.lock();
        let Some(driven) = control.driven.as_mut() else {
            return;
        };
        let trouble = match self.transport.status() {
            status if status.is_gone() => Some("device does not answer"),
            status if status.contains(Status::NEEDS_RESET) => Some("device asks for a reset"),
            status if !status.contains(Status::DRIVER_OK) => Some("device has lost its driver"),
            _ => None,
        };
        if let Some(trouble) = trouble {
            drop(control);
            return self.recover(dev, trouble);
        }
        let Ok(link) = config::Link::read(&self.transport, driven.features) else {
            // It kept changing: look again.
            dev.schedule_work_in(Work::CONFIG, 10);
            return;
        };
        let before = core::mem::replace(&mut driven.link, link);
        if (before.speed, before.full_duplex) != (link.speed, link.full_duplex) {
            control.wishes.link = None;
        }
        if link.up != dev.has_carrier() && control.wishes.open {
            dev.set_carrier(link.up);
            if self.messages.link() {
                dev_info!(
                    self.pdev,
                    "link is {}\n",
                    if link.up { "up" } else { "down" }
                );
            }
        }
        if link.announce {
            dev.notify_peers();
            let _ = self.command(&mut control, control::ANNOUNCE_ACK, &[]);
            self.check_control(dev, &control);
        }
    }
}

/// Identifiers of VLANs: 12 bits.
const VLANS: usize = 4096;

/// The addresses of a list.
fn collect(addresses: Addresses<'_>) -> Result<KVec<Address>> {
    let mut list = KVec::new();
    list.resize(addresses.len(), [0; 6], GFP_KERNEL)?;
    let count = addresses.copy_to(&mut list);
    list.truncate(count);
    Ok(list)
}

impl<'a> Operations for Nic<'a> {
    fn release(&self) {
        self.give_up_device(&mut self.control.lock());
    }

    fn open(&self, dev: &Device<Self>) -> Result {
        let mut control = self.control.lock();
        let driven = control.driven.as_ref().ok_or(ENODEV)?;
        // If it cannot be read now, it soon is again.
        let link = config::Link::read(&self.transport, driven.features).unwrap_or(driven.link);
        self.start_queues(dev, &mut control)
            .inspect_err(|_| self.stop_queues(dev, &mut control))?;
        control.wishes.open = true;
        dev.set_carrier(link.up);
        // It may have changed before `open` was set.
        dev.schedule_work(Work::CONFIG);
        if self.messages.ifup() {
            dev_info!(self.pdev, "up, pairs of queues: {}\n", control.wishes.pairs);
        }
        Ok(())
    }

    fn stop(&self, dev: &Device<Self>) {
        let mut control = self.control.lock();
        control.wishes.open = false;
        self.stop_queues(dev, &mut control);
        dev.set_carrier(false);
        if self.messages.ifdown() {
            dev_info!(self.pdev, "down\n");
        }
    }

    #[inline]
    fn start_xmit(
        &self,
        _dev: &Device<Self>,
        skb: SkBuff,
        queue: &mut XmitQueue<'_>,
    ) -> Result<(), Busy> {
        match self.pairs.get(queue.index() as usize) {
            Some(pair) => pair.tx.handler().xmit(&pair.tx, skb, queue),
            // Cannot be: there are as many queues as pairs.
            None => Ok(()),
        }
    }

    fn get_stats(&self, _dev: &Device<Self>, stats: &mut DeviceStats) {
        for pair in &self.pairs {
            pair.rx.handler().stats.add_to(stats);
            pair.tx.handler().stats.add_to(stats);
        }
    }

    fn set_rx_mode(
        &self,
        dev: &Device<Self>,
        unicast: Addresses<'_>,
        multicast: Addresses<'_>,
    ) -> Result {
        let (unicast, multicast) = (collect(unicast)?, collect(multicast)?);
        let mut control = self.control.lock();
        let wishes = &mut control.wishes;
        wishes.promiscuous = dev.is_promiscuous();
        wishes.all_multicast = dev.is_all_multicast();
        wishes.unicast = unicast;
        wishes.multicast = multicast;
        let result = self.tell_rx_mode(&mut control);
        self.check_control(dev, &control);
        match result {
            // The core would try again and again.
            Err(error) if error == EOPNOTSUPP => Ok(()),
            result => result,
        }
    }

    fn set_mac_address(&self, dev: &Device<Self>, address: &Address) -> Result {
        let mut control = self.control.lock();
        let result = self.tell_address(&mut control, address);
        self.check_control(dev, &control);
        result
    }

    fn change_mtu(&self, dev: &Device<Self>, mtu: u32) -> Result {
        let before = dev.mtu();
        dev.set_mtu(mtu);
        let mut control = self.control.lock();
        let fits = control
            .driven
            .as_ref()
            .is_none_or(|driven| driven.buffers_fit(mtu));
        if fits {
            return Ok(());
        }
        self.rebuild(dev, &mut control, |_| dev.set_mtu(before))
    }

    fn vlan_add(&self, dev: &Device<Self>, vid: u16) -> Result {
        self.tell_vlan(dev, vid, true)
    }

    fn vlan_kill(&self, dev: &Device<Self>, vid: u16) -> Result {
        // Not an error that the core could do something about.
        let _ = self.tell_vlan(dev, vid, false);
        Ok(())
    }

    fn fix_features(&self, _dev: &Device<Self>, wanted: net::Features) -> net::Features {
        // Large packets come without checksums of their segments.
        if wanted.contains(net::features::RXCSUM) {
            wanted
        } else {
            wanted & !net::features::GRO_HW
        }
    }

    fn set_features(&self, dev: &Device<Self>, wanted: net::Features) -> Result {
        let mut control = self.control.lock();
        let before = control.wishes.features;
        control.wishes.features = wanted;
        let rx = net::features::RXCSUM | net::features::GRO_HW;
        if !(before ^ wanted).intersects(rx) {
            return Ok(());
        }
        let result = self.tell_offloads(&mut control);
        if result.is_err() {
            control.wishes.features = before;
        }
        self.check_control(dev, &control);
        result
    }

    fn tx_timeout(&self, dev: &Device<Self>, queue: u32) {
        if let Some(pair) = self.pairs.get(queue as usize) {
            pair.tx.handler().stats.timeouts.add(1);
        }
        if net::ratelimit() {
            dev_warn!(
                self.pdev,
                "transmit queue {}: nothing was sent for too long\n",
                queue
            );
        }
        dev.schedule_work(Work::RESET);
    }

    fn work(&self, dev: &Device<Self>, events: usize) {
        if events & Work::RESET != 0 {
            self.recover(dev, "a queue is stuck or broken");
        }
        if events & Work::REFILL != 0 {
            for pair in &self.pairs {
                pair.rx.schedule_process();
            }
        }
        if events & Work::MODERATE != 0 {
            let mut control = self.control.lock();
            self.moderate(&mut control);
            self.check_control(dev, &control);
        }
        if events & Work::CONFIG != 0 {
            self.configuration_changed(dev);
        }
    }

    fn queue_stats_rx(&self, _dev: &Device<Self>, queue: u32, stats: &mut QueueStatsRx) {
        if let Some(pair) = self.pairs.get(queue as usize) {
            pair.rx.handler().stats.queue_stats(stats);
        }
    }

    fn queue_stats_tx(&self, _dev: &Device<Self>, queue: u32, stats: &mut QueueStatsTx) {
        if let Some(pair) = self.pairs.get(queue as usize) {
            pair.tx.handler().stats.queue_stats(stats);
        }
    }

    fn base_stats(&self, _dev: &Device<Self>, stats: BaseStats<'_>) {
        RxStats::base(stats.rx);
        TxStats::base(stats.tx);
    }
}
