// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A flow: packets sent at one port that arrive at the same or another, as fast as they go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vm_memory::VolatileSlice;

use super::frame::Packets;
use super::port::Port;
use super::queue::Queue;

/// Packets and buffers that are looked after in one go.
const BURST: usize = 32;
/// One of so many packets that arrive is compared with what was sent.
const SAMPLE: u64 = 64;
/// Octets of a frame that is a greeting.
const GREETING: usize = 64;
/// The clock is looked at once in so many turns.
const TURNS: u32 = 64;
/// Nothing that the backend has taken is still under way when nothing has arrived for so long.
const SILENCE: Duration = Duration::from_millis(200);
/// How long the first packet may take: the backend may not have begun yet.
const PATIENCE: Duration = Duration::from_secs(10);

/// The end at which packets are sent.
#[derive(Debug)]
pub struct Sender {
    packets: Packets,
    /// The next packet's number.
    next: u64,
    /// Packets that the backend has taken.
    taken: u64,
}

/// The end at which they arrive.
#[derive(Debug)]
pub struct Receiver {
    packets: Packets,
    /// Buffers of the packet that is arriving, with what is in them.
    parts: Vec<(u16, u32)>,
    octets: usize,
    arrived: u64,
    sampled: u64,
    /// The number of the last packet that was looked at.
    last: Option<u64>,
}

/// What was counted over a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// Packets that the backend took.
    pub taken: u64,
    /// Packets that arrived.
    pub arrived: u64,
    /// Notifications that the backend wanted.
    pub kicks: u64,
    /// How long it was.
    pub seconds: f64,
    /// The share of the generator's turns in which there was nothing to do: above zero means that it
    /// was waiting for the backend, and not the backend for it.
    pub idle: f64,
}

/// What came of all that was ever sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// Packets that the backend took.
    pub taken: u64,
    /// Those of them that have not arrived.
    pub lost: u64,
    /// Those that arrived and were compared, octet by octet.
    pub sampled: u64,
}

impl Sender {
    /// An end that sends such packets from this queue.
    pub fn new(packets: Packets, queue: &Queue<'_>) -> Self {
        for buffer in queue.buffers() {
            packets.prepare(buffer);
        }
        Sender {
            packets,
            next: 0,
            taken: 0,
        }
    }

    /// Sends up to `most` packets; whether there was anything to do.
    #[inline]
    pub fn turn(&mut self, queue: &mut Queue<'_>, most: usize) -> Result<bool> {
        let before = self.taken;
        // The other half of the ring can wait until the next turn.
        while self.taken - before < 2 * BURST as u64
            && let Some(used) = queue.reap()?
        {
            queue.release(used.id);
            self.taken += 1;
        }
        let len = self.packets.len() as u32;
        for _ in 0..most {
            let Sender { packets, next, .. } = self;
            if !queue.offer(len, |buffer| packets.number(buffer, *next)) {
                break;
            }
            *next += 1;
        }
        queue.publish()?;
        Ok(self.taken != before)
    }
}

impl Receiver {
    /// An end at which such packets arrive.
    pub fn new(packets: Packets) -> Self {
        Receiver {
            packets,
            parts: Vec::with_capacity(64),
            octets: 0,
            arrived: 0,
            sampled: 0,
            last: None,
        }
    }

    /// Takes what has arrived, up to a burst of buffers; whether there was anything.
    #[inline]
    pub fn turn(&mut self, queue: &mut Queue<'_>) -> Result<bool> {
        let whole = queue.shape().len;
        let mut buffers = 0;
        while buffers < BURST
            && let Some(used) = queue.reap()?
        {
            buffers += 1;
            self.octets += used.len as usize;
            self.parts.push((used.id, used.len));
            // No packet here fills its last buffer.
            if used.len < whole {
                self.packet(queue)?;
            }
        }
        if buffers > 0 {
            queue.refill();
            queue.publish()?;
        }
        Ok(buffers > 0)
    }

    /// A packet has arrived.
    #[inline]
    fn packet(&mut self, queue: &mut Queue<'_>) -> Result<()> {
        ensure!(
            self.octets == self.packets.len(),
            "a packet of {} octets has arrived, but {} were sent",
            self.octets,
            self.packets.len()
        );
        if self.arrived.is_multiple_of(SAMPLE) {
            self.look(queue)?;
        }
        self.arrived += 1;
        self.octets = 0;
        for (id, _) in self.parts.drain(..) {
            queue.release(id);
        }
        Ok(())
    }

    #[cold]
    fn look(&mut self, queue: &Queue<'_>) -> Result<()> {
        let part = |&(id, len): &(u16, u32)| -> Result<VolatileSlice<'_>> {
            Ok(queue.buffer(id)?.subslice(0, len as usize)?)
        };
        let parts: Vec<_> = self.parts.iter().map(part).collect::<Result<_>>()?;
        let number = self.packets.check(&parts)?;
        if let Some(last) = self.last.replace(number)
            && number < last + SAMPLE
        {
            bail!("packet {number} has arrived {SAMPLE} packets behind packet {last}");
        }
        self.sampled += 1;
        Ok(())
    }
}

/// Sends one small frame, and waits until the backend has taken it.
pub fn greet(port: &mut Port<'_>, from: [u8; 6], to: [u8; 6]) -> Result<()> {
    let mut sender = Sender::new(Packets::new(GREETING, from, to), &port.tx);
    let deadline = Instant::now() + PATIENCE;
    let mut most = 1;
    while !sender.turn(&mut port.tx, most)? {
        most = 0;
        ensure!(
            Instant::now() < deadline,
            "the backend has not taken a packet within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Where packets arrive.
#[derive(Debug)]
pub enum Ends<'p, 'm> {
    /// At the port that has sent them.
    Same(&'p mut Port<'m>),
    /// At another.
    Two {
        /// The port that sends.
        from: &'p mut Port<'m>,
        /// The port that receives.
        to: &'p mut Port<'m>,
    },
}

impl<'m> Ends<'_, 'm> {
    fn queues(&mut self) -> (&mut Queue<'m>, &mut Queue<'m>) {
        match self {
            Ends::Same(port) => (&mut port.tx, &mut port.rx),
            Ends::Two { from, to } => (&mut from.tx, &mut to.rx),
        }
    }
}

/// A flow between two ends.
#[derive(Debug)]
pub struct Flow<'p, 'm> {
    ends: Ends<'p, 'm>,
    sender: Sender,
    receiver: Receiver,
}

impl<'p, 'm> Flow<'p, 'm> {
    /// A flow of frames of so many octets between stations with these addresses. Waits for the first
    /// packet to arrive.
    pub fn start(mut ends: Ends<'p, 'm>, frame: usize, from: [u8; 6], to: [u8; 6]) -> Result<Self> {
        let (tx, _) = ends.queues();
        let mut flow = Flow {
            sender: Sender::new(Packets::new(frame, from, to), tx),
            receiver: Receiver::new(Packets::new(frame, from, to)),
            ends,
        };
        let deadline = Instant::now() + PATIENCE;
        while flow.receiver.arrived == 0 {
            flow.turn(1)?;
            ensure!(
                Instant::now() < deadline,
                "no packet has arrived within {PATIENCE:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(flow)
    }

    #[inline]
    fn turn(&mut self, most: usize) -> Result<bool> {
        let (tx, rx) = self.ends.queues();
        let received = self.receiver.turn(rx)?;
        let taken = self.sender.turn(tx, most)?;
        Ok(received || taken)
    }

    fn kicks(&mut self) -> u64 {
        let (tx, rx) = self.ends.queues();
        tx.kicks + rx.kicks
    }

    /// Moves packets for so long.
    pub fn run(&mut self, time: Duration) -> Result<Counted> {
        let (taken, arrived, kicks) = (self.sender.taken, self.receiver.arrived, self.kicks());
        let start = Instant::now();
        let (mut turns, mut idle) = (0u64, 0u64);
        loop {
            for _ in 0..TURNS {
                let busy = self.turn(BURST)?;
                idle += u64::from(!busy);
            }
            turns += u64::from(TURNS);
            let elapsed = start.elapsed();
            if elapsed >= time {
                return Ok(Counted {
                    taken: self.sender.taken - taken,
                    arrived: self.receiver.arrived - arrived,
                    kicks: self.kicks() - kicks,
                    seconds: elapsed.as_secs_f64(),
                    idle: idle as f64 / turns as f64,
                });
            }
        }
    }

    /// Sends no more, and waits for what is under way.
    pub fn finish(mut self) -> Result<Fate> {
        let mut quiet = Instant::now();
        loop {
            if self.turn(0)? {
                quiet = Instant::now();
            }
            let (tx, _) = self.ends.queues();
            if tx.away() == 0 {
                if quiet.elapsed() >= SILENCE {
                    break;
                }
            } else if quiet.elapsed() >= PATIENCE {
                bail!(
                    "the backend keeps {} packets without sending them",
                    tx.away()
                );
            }
        }
        let Sender { taken, .. } = self.sender;
        let lost = taken.checked_sub(self.receiver.arrived);
        Ok(Fate {
            taken,
            lost: lost.context("more packets have arrived than were sent")?,
            sampled: self.receiver.sampled,
        })
    }
}
