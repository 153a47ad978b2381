// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How soon a NIC answers: from the driver's kick to its interrupt, through our loopback, with nobody
//! polling. Beside it the least that this can take: two threads that wake each other by eventfd, on the
//! same two processors.
//!
//! A packet of 64 octets is sent when the one before has come back, so that the worker sleeps each time,
//! as the thread at the other end of the ping-pong does. The receive queue interrupts, the transmit queue
//! does not.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::case::{Better, Case, rounded};
use super::host::{Moment, Weather};
use super::ring::Load;
use super::samples::Samples;
use super::stage::{Actor, Stage};
use super::testpmd::Topology;
use super::{Args, Findings};
use crate::load::flow::{Receiver, Sender};
use crate::load::frame::Packets;
use crate::load::port::Port;
use crate::load::ring::Form;
use crate::progress::{Step, say};

const FRAME: usize = 64;
const FORMS: [Form; 2] = [Form::Split, Form::Packed];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Not counted.
const WARM_UP: usize = 1000;
/// How long a packet may be under way.
const PATIENCE_MS: i32 = 10_000;
/// Written into an eventfd to end who waits for it.
const STOP: u64 = 2;
const PEER: &str = "eventfd";
const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Round trips of one measurement, the quickest first.
#[derive(Debug)]
struct Trips(Vec<Duration>);

#[derive(Debug)]
struct Round {
    form: Form,
    nic: Trips,
    eventfd: Trips,
}

/// Measures everything.
pub fn run(stage: &Stage, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let time = Duration::from_secs(args.seconds.into());
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        for form in FORMS {
            let what = format!("latency round {round} of {}: {}", args.rounds, form.name());
            let step = Step::start(&what);
            let actor = stage.ferronic(Topology::Loop, &[])?;
            let moment = Moment::now()?;
            let eventfd = ping_pong(stage, time).context("eventfd ping-pong")?;
            let nic = stage
                .on(stage.processors.generator, || {
                    through_nic(&actor, form, time)
                })
                .context(what.clone())?;
            weather.note(moment.until_now()?);
            step.done();
            say(format!("{what}: {nic}; eventfd {eventfd}"));
            rounds.push(Round { form, nic, eventfd });
        }
    }
    Ok(Findings {
        cases: cases(&rounds),
        details: String::new(),
    })
}

fn cases(rounds: &[Round]) -> Vec<Case> {
    let mut cases = Vec::new();
    for form in FORMS {
        for (name, share) in PERCENTILES {
            let samples = |trips: fn(&Round) -> &Trips| -> Samples {
                let of_form = rounds.iter().filter(|round| round.form == form);
                of_form
                    .map(|round| trips(round).percentile(share))
                    .collect()
            };
            cases.push(Case {
                name: format!("latency {} kick to interrupt {name}", form.name()),
                unit: "us",
                better: Better::Less,
                ours: samples(|round| &round.nic),
                peers: vec![(PEER.into(), samples(|round| &round.eventfd))],
            });
        }
    }
    cases
}

impl Trips {
    fn new(mut trips: Vec<Duration>) -> Result<Self> {
        ensure!(
            trips.len() > 2 * WARM_UP,
            "only {} round trips",
            trips.len()
        );
        trips.drain(..WARM_UP);
        trips.sort();
        Ok(Trips(trips))
    }

    /// Microseconds that this share of the trips did not exceed.
    fn percentile(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let trip = self.0.get((last as f64 * share).round() as usize);
        trip.map_or(f64::NAN, |trip| trip.as_secs_f64() * 1e6)
    }
}

impl std::fmt::Display for Trips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, share) in PERCENTILES {
            write!(f, "{name} {} ", rounded(self.percentile(share)))?;
        }
        write!(f, "us of {} trips", self.0.len())
    }
}

/// Packets that come back on the loopback, one after the other.
fn through_nic(actor: &Actor, form: Form, time: Duration) -> Result<Trips> {
    let load = Load {
        form,
        frame: FRAME,
        topology: Topology::Loop,
    };
    let socket = actor
        .sockets
        .first()
        .context("the back-end has no socket")?;
    let memory = load.shape().memory()?;
    let mut port = Port::connect(&memory, load.shape(), socket)?;
    port.rx.set_interrupts(true);
    let packets = || Packets::new(FRAME, STATION, STATION);
    let mut sender = Sender::new(packets(), &port.tx);
    let mut receiver = Receiver::new(packets());
    let interrupt = Interrupt::of(&port.rx.call)?;
    let mut trips = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time || trips.len() <= 2 * WARM_UP {
        let kick = Instant::now();
        sender.turn(&mut port.tx, 1)?;
        // An interrupt may be for what is not there yet; it comes again.
        while !receiver.turn(&mut port.rx)? {
            interrupt.wait()?;
        }
        trips.push(kick.elapsed());
    }
    Trips::new(trips)
}

/// An interrupt that is waited for as others wait for many descriptors: edge by edge, so that it costs one
/// system call.
struct Interrupt(Epoll);

impl Interrupt {
    fn of(call: &EventFd) -> Result<Self> {
        use std::os::fd::AsRawFd;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, call.as_raw_fd(), event)?;
        Ok(Interrupt(epoll))
    }

    fn wait(&self) -> Result<()> {
        let mut events = [EpollEvent::default()];
        match self.0.wait(PATIENCE_MS, &mut events) {
            Ok(count) => ensure!(count > 0, "no interrupt within {PATIENCE_MS} ms"),
            Err(e) if e.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
            Err(e) => return Err(e).context("cannot wait for an interrupt"),
        }
        Ok(())
    }
}

/// Two threads that wake each other.
fn ping_pong(stage: &Stage, time: Duration) -> Result<Trips> {
    let (ping, pong) = (EventFd::new(0)?, EventFd::new(0)?);
    let echo = || -> Result<()> {
        while ping.read()? != STOP {
            pong.write(1)?;
        }
        Ok(())
    };
    let drive = || -> Result<Trips> {
        let mut trips = Vec::new();
        let start = Instant::now();
        while start.elapsed() < time || trips.len() <= 2 * WARM_UP {
            let kick = Instant::now();
            ping.write(1)?;
            pong.read()?;
            trips.push(kick.elapsed());
        }
        Trips::new(trips)
    };
    thread::scope(|scope| {
        let far = scope.spawn(|| stage.on(stage.processors.device, echo));
        let trips = stage.on(stage.processors.generator, drive);
        ping.write(STOP)?;
        // It has nothing to say but why it could not begin.
        far.join().unwrap_or(Ok(()))?;
        trips
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_trips_after_the_warm_up() {
        let slow = Duration::from_millis(9);
        let mut trips = vec![slow; WARM_UP];
        trips.extend((0..2001).rev().map(Duration::from_micros));
        let trips = Trips::new(trips).unwrap();
        let all = PERCENTILES.map(|(_, share)| trips.percentile(share));
        assert_eq!(all.map(f64::round), [1000.0, 1980.0, 1998.0]);
        assert!(Trips::new(vec![slow; WARM_UP]).is_err());
    }
}
