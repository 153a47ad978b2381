// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Changes that others want to hear of: the control socket's clients, the frontend, the workers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Something that changed. Names follow the control socket's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The cable was pulled or put back.
    LinkChanged {
        /// Whether the link is up now.
        up: bool,
    },
    /// A frontend connected.
    FrontendConnected {
        /// Its process id, where known.
        pid: Option<i32>,
    },
    /// The frontend went away.
    FrontendDisconnected,
    /// The far side of the uplink came or went.
    UplinkChanged {
        /// Whether it is there now.
        up: bool,
    },
    /// A port was added to the switch.
    PortAdded {
        /// Its name.
        port: String,
    },
    /// A port was taken from the switch.
    PortRemoved {
        /// Its name.
        port: String,
    },
    /// One of the above, of the NIC at a port of the switch.
    AtPort {
        /// The port's name.
        port: String,
        /// What happened there.
        event: Box<Event>,
    },
}

/// Most events that wait for one subscriber; older ones give way, so that a subscriber that sleeps
/// cannot make the NIC's memory grow.
const BACKLOG: usize = 256;

/// Hands every event to every subscriber.
#[derive(Debug, Default)]
pub struct EventBus {
    subscribers: Mutex<Vec<Weak<Mailbox>>>,
}

#[derive(Debug)]
struct Mailbox {
    wake: OwnedFd,
    waiting: Mutex<Vec<Event>>,
}

/// One subscriber's end: readable when events wait. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription(Arc<Mailbox>);

impl EventBus {
    /// A new subscription, which gets everything published from now on.
    pub fn subscribe(&self) -> io::Result<Subscription> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mailbox = Arc::new(Mailbox {
            wake,
            waiting: Mutex::new(Vec::new()),
        });
        self.subscribers.lock().push(Arc::downgrade(&mailbox));
        Ok(Subscription(mailbox))
    }

    /// Tells all subscribers.
    pub fn publish(&self, event: Event) {
        self.subscribers.lock().retain(|subscriber| {
            let Some(mailbox) = subscriber.upgrade() else {
                return false;
            };
            let mut waiting = mailbox.waiting.lock();
            if waiting.len() == BACKLOG {
                waiting.remove(0);
            }
            waiting.push(event.clone());
            // An eventfd refuses only when its counter is full, and then it is readable anyway.
            let _ = rustix::io::write(&mailbox.wake, &1u64.to_ne_bytes());
            true
        });
    }
}

impl Subscription {
    /// Takes what has come since the last call and clears readiness.
    pub fn take(&self) -> Vec<Event> {
        let mut count = [0u8; 8];
        // WouldBlock just says that nothing came.
        let _ = rustix::io::read(&self.0.wake, &mut count);
        std::mem::take(&mut *self.0.waiting.lock())
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subscriber_hears_in_order_and_the_backlog_is_bounded() {
        let bus = EventBus::default();
        let first = bus.subscribe().unwrap();
        let second = bus.subscribe().unwrap();
        for i in 0..BACKLOG + 2 {
            bus.publish(Event::LinkChanged { up: i % 2 == 0 });
        }
        assert_eq!(first.take().len(), BACKLOG);
        assert!(first.take().is_empty());
        drop(first);
        bus.publish(Event::FrontendDisconnected);
        assert_eq!(second.take().last(), Some(&Event::FrontendDisconnected));
        assert_eq!(bus.subscribers.lock().len(), 1);
    }
}
