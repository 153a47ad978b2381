// SPDX-License-Identifier: GPL-2.0

//! Tests of the device: `ethtool -t`.
//!
//! | test | traffic | what is tested |
//! |---|---|---|
//! | Device | goes on | it is ready, and does not ask for a reset |
//! | Configuration | goes on | it says what it said when it was probed |
//! | Link | goes on | it is up |
//! | Interrupt | goes on | a frame that is sent leads to one |
//! | Loopback | stops | a frame that is sent comes back as it was |
//! | Reset | stops | the device lets itself be reset and driven anew |
//!
//! Results are 0 for passed, 1 for failed, 2 for skipped. A frame comes back only if the other end
//! of the cable sends it back. That it does not is no fault of the device, so nothing is found out
//! then: the test is skipped, unless the device did not even take the frame.
//!
//! Frames for tests are from the card to itself, so that nobody else has a use for them.

use super::super::{
    config::{
        Fixed,
        Link, //
    },
    nic::Nic, //
};
use crate::{
    net::{
        ethtool::TestResult,
        Device,
        SkBuff, //
    },
    virtio::Status, //
};
use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Names as ethtool prints them.
pub(super) const NAMES: [&str; 6] = [
    "Device        (online)",
    "Configuration (online)",
    "Link          (online)",
    "Interrupt     (online)",
    "Loopback      (offline)",
    "Reset         (offline)",
];

/// How long to wait for something to happen.
const PATIENCE: Delta = Delta::from_millis(500);
/// Between two looks whether it has.
const STEP: Delta = Delta::from_millis(1);

/// Octets of a frame for tests: longer than those whose buffers are used again at once.
const FRAME: usize = 600;
/// The first of the Ethertypes for local experiments (IEEE 802, 9.2.4).
const ETHERTYPE: u16 = 0x88b5;

/// How many frames there have been.
static FRAMES: Atomic<u64> = Atomic::new(0);

/// A frame that is like no other.
fn frame(address: [u8; 6]) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    let number = FRAMES.fetch_add(1, Relaxed).wrapping_add(1);
    for (i, octet) in (1u64..).zip(frame.iter_mut()) {
        // CAST: Some of the bits. The factor is a large odd number.
        *octet = (number.wrapping_mul(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8;
    }
    let head = [&address[..], &address[..], &ETHERTYPE.to_be_bytes()[..]];
    for (to, from) in frame.iter_mut().zip(head.into_iter().flatten()) {
        *to = *from;
    }
    frame
}

/// Waits until something is so. False if that takes too long. May sleep.
fn wait(mut so: impl FnMut() -> bool) -> bool {
    let start = Instant::<Monotonic>::now();
    loop {
        if so() {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        fsleep(STEP);
    }
}

fn verdict(passed: bool) -> TestResult {
    if passed {
        TestResult::Passed
    } else {
        TestResult::Failed
    }
}

impl<'a> Nic<'a> {
    pub(super) fn test(&self, dev: &Device<Self>, offline: bool, results: &mut [TestResult]) {
        let [device, configuration, link, interrupt, loopback, reset] = results else {
            return;
        };
        if offline {
            *loopback = self.test_loopback(dev);
            *reset = self.test_reset(dev);
        }
        *device = self.test_device();
        *configuration = self.test_configuration();
        *link = self.test_link();
        *interrupt = self.test_interrupt(dev);
    }

    fn test_device(&self) -> TestResult {
        let status = self.transport.status();
        let ready = status.contains(Status::DRIVER_OK);
        let bad = status.is_gone()
            || status.contains(Status::FAILED)
            || status.contains(Status::NEEDS_RESET);
        verdict(ready && !bad)
    }

    fn test_configuration(&self) -> TestResult {
        let control = self.control.lock();
        let Some(driven) = &control.driven else {
            return TestResult::Failed;
        };
        let offered = self.transport.offered();
        let same = Fixed::read(&self.transport, driven.features)
            .is_ok_and(|now| now.max_pairs == driven.fixed.max_pairs)
            && offered.is_ok_and(|offered| offered.contains(driven.features));
        verdict(same)
    }

    fn test_link(&self) -> TestResult {
        let control = self.control.lock();
        let features = control.driven.as_ref().map(|driven| driven.features);
        verdict(features.is_some_and(|features| {
            Link::read(&self.transport, features).is_ok_and(|link| link.up)
        }))
    }

    fn interrupts(&self) -> u64 {
        let count = |pair: &super::super::nic::Pair<'_>| pair.rx.handler().stats.interrupts.get();
        self.pairs.iter().map(count).fold(0, u64::wrapping_add)
    }

    fn test_interrupt(&self, dev: &Device<Self>) -> TestResult {
        if !self.control.lock().wishes.open {
            return TestResult::Skipped;
        }
        // After a reset the link takes a moment.
        if !wait(|| dev.has_carrier()) {
            return TestResult::Skipped;
        }
        let Ok(skb) = SkBuff::from_octets(dev, &frame(dev.address())) else {
            return TestResult::Skipped;
        };
        // It may be sent on any of them.
        for pair in &self.pairs {
            pair.tx.handler().arm_ahead(&pair.tx);
        }
        let before = self.interrupts();
        skb.queue_xmit();
        verdict(wait(|| self.interrupts() != before))
    }

    fn test_loopback(&self, dev: &Device<Self>) -> TestResult {
        let mut control = self.control.lock();
        let open = control.wishes.open;
        if open {
            self.stop_queues(dev, &mut control);
        }
        let result = match control.driven.as_mut().zip(self.pairs.first()) {
            Some((driven, pair)) => match driven.idle_rx(0) {
                Some(rx) => Self::loop_back(dev, pair, rx),
                None => TestResult::Failed,
            },
            None => TestResult::Failed,
        };
        if open && self.start_queues(dev, &mut control).is_err() {
            return TestResult::Failed;
        }
        result
    }

    /// Sends a frame and waits for it, while nobody else does such things.
    fn loop_back(
        dev: &Device<Self>,
        pair: &super::super::nic::Pair<'a>,
        rx: &mut super::super::rx::Rx<'a>,
    ) -> TestResult {
        let (rx_stats, tx) = (&pair.rx.handler().stats, pair.tx.handler());
        let frame = frame(dev.address());
        let Ok(skb) = SkBuff::from_octets(dev, &frame) else {
            return TestResult::Skipped;
        };
        rx.refill(None, rx_stats);
        if !tx.send_alone(skb) || !wait(|| tx.reclaim()) {
            return TestResult::Failed;
        }
        let mut result = TestResult::Skipped;
        wait(|| match rx.look_for(&frame) {
            Some(same) => {
                result = verdict(same);
                true
            }
            None => false,
        });
        if rx.broken().is_some() {
            return TestResult::Failed;
        }
        result
    }

    fn test_reset(&self, dev: &Device<Self>) -> TestResult {
        let mut control = self.control.lock();
        verdict(self.rebuild(dev, &mut control, |_| ()).is_ok())
    }
}
