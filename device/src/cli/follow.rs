// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--link follow`: the link goes up and down with the uplink's own carrier.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::nic::Nic;
use crate::nic::events::{Event, Subscription};

/// Carries changes of the uplink over to the link, on the control thread.
#[derive(Debug)]
pub struct Follower {
    nic: Arc<Nic>,
    events: Subscription,
}

impl Follower {
    /// Sets the link to what the uplink is now, and follows it from here.
    pub fn new(nic: &Arc<Nic>) -> io::Result<Self> {
        // Subscribed first, so that no change falls between.
        let events = nic.events().subscribe()?;
        nic.set_link(nic.uplink_up());
        Ok(Follower {
            nic: Arc::clone(nic),
            events,
        })
    }

    fn follow(&self) {
        let changes = self.events.take().into_iter();
        let ups = changes.filter_map(|event| match event {
            Event::UplinkChanged { up } => Some(up),
            _ => None,
        });
        // Each one, so that a short loss of carrier is not hidden from the guest.
        for up in ups {
            self.nic.set_link(up);
        }
    }
}

impl MutEventSubscriber for Follower {
    fn init(&mut self, ops: &mut EventOps) {
        let fd = self.events.as_fd().as_raw_fd();
        if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            log::error!("cannot follow the uplink: {e}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.follow();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::test_support::nic;

    #[test]
    fn the_link_takes_the_uplinks_state_and_keeps_to_it() {
        let nic = nic(1);
        nic.set_uplink(false);
        let follower = Follower::new(&nic).unwrap();
        assert!(!nic.link_up());
        nic.set_uplink(true);
        follower.follow();
        assert!(nic.link_up());
        // A hand on the cable counts until the uplink changes next.
        nic.set_link(false);
        follower.follow();
        assert!(!nic.link_up());
    }
}
