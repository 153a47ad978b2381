// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From guest to guest through our switch, beside copying the same octets on the same processor.
//!
//! The switch copies a packet once, from one guest's memory into the other's, so what a copy alone takes
//! is the limit. The copy is made between memories of the same shape, in the same order of buffers, and
//! measured on the processor that the switch's worker has, right before it.

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::case::{Better, Case, rounded};
use super::host::{Moment, Weather};
use super::ring::{self, LARGEST, Load, Measured, POLLING};
use super::samples::Samples;
use super::stage::Stage;
use super::testpmd::Topology;
use super::{Args, Findings};
use crate::load::frame::HEADER;
use crate::load::memory::Memory;
use crate::load::port::PortShape;
use crate::load::queue::Shape;
use crate::load::ring::{AREA, Form};
use crate::progress::{Step, say};

const FRAMES: [usize; 2] = [1514, LARGEST];
const FORMS: [Form; 2] = [Form::Split, Form::Packed];
/// Buffers are copied for so long between looks at the clock, at most.
const SLICE: usize = 1 << 20;

/// What a round found for one load, in Gb/s of frames.
#[derive(Debug)]
struct Round {
    load: Load,
    switch: f64,
    memcpy: f64,
    measured: Measured,
}

/// Measures everything.
pub fn run(stage: &Stage, args: &Args, weather: &mut Weather) -> Result<Findings> {
    let time = Duration::from_secs(args.seconds.into());
    let mut rounds = Vec::new();
    for round in 1..=args.rounds {
        for load in loads() {
            let what = format!("copy round {round} of {}: {}", args.rounds, name(load));
            let step = Step::start(&what);
            let memcpy = stage
                .on(stage.processors.device, || memcpy(load.shape(), time / 4))
                .context("memcpy")?;
            let actor = stage.ferronic(Topology::Pair, &POLLING)?;
            let moment = Moment::now()?;
            let measured = ring::measure(stage, &actor, load, time).context(what.clone())?;
            weather.note(moment.until_now()?);
            step.done();
            let octets = measured.counted.arrived as f64 * load.frame as f64;
            let round = Round {
                load,
                switch: octets * 8e-9 / measured.counted.seconds,
                memcpy,
                measured,
            };
            say(format!(
                "{what}: through the switch {} Gb/s, memcpy {} Gb/s",
                rounded(round.switch),
                rounded(round.memcpy)
            ));
            rounds.push(round);
        }
    }
    Ok(Findings {
        cases: loads().map(|load| case(&rounds, load)).collect(),
        details: details(&rounds),
    })
}

fn loads() -> impl Iterator<Item = Load> {
    let load = |form, frame| Load {
        form,
        frame,
        topology: Topology::Pair,
    };
    FORMS
        .into_iter()
        .flat_map(move |form| FRAMES.into_iter().map(move |frame| load(form, frame)))
}

fn name(load: Load) -> String {
    format!("copy {} {} guest to guest", load.form.name(), load.octets())
}

fn samples(rounds: &[Round], load: Load, figure: impl Fn(&Round) -> f64) -> Samples {
    let of_load = rounds.iter().filter(|round| round.load == load);
    of_load.map(figure).collect()
}

fn case(rounds: &[Round], load: Load) -> Case {
    Case {
        name: name(load),
        unit: "Gb/s",
        better: Better::More,
        ours: samples(rounds, load, |round| round.switch),
        peers: vec![("memcpy".into(), samples(rounds, load, |round| round.memcpy))],
    }
}

fn details(rounds: &[Round]) -> String {
    let mut text = String::new();
    for load in loads() {
        let median = |figure: fn(&Round) -> f64| {
            let median = samples(rounds, load, figure).median();
            median.map_or("-".to_owned(), rounded)
        };
        let _ = writeln!(
            text,
            "{}: {} % lost; the generator found nothing to do in {} % of its turns",
            name(load),
            median(|round| round.measured.lost_percent()),
            median(|round| 100.0 * round.measured.counted.idle)
        );
    }
    text
}

/// Gb/s of frames that can be copied from transmit into receive buffers of such ports: each packet with
/// its header, into as many buffers as it needs, all buffers in turn.
fn memcpy(shape: PortShape, time: Duration) -> Result<f64> {
    let PortShape {
        receive, transmit, ..
    } = shape;
    let (from, to) = (shape.memory()?, shape.memory()?);
    let sources = buffers(&from, transmit, 2 * AREA + receive.octets())?;
    let targets = buffers(&to, receive, 2 * AREA)?;
    let mut targets = targets.iter().cycle();
    let packet = transmit.len as usize;
    let mut packets = 0u64;
    let mut elapsed = Duration::ZERO;
    let mut sources = sources.iter().cycle();
    let start = Instant::now();
    while elapsed < time {
        for _ in 0..SLICE.div_ceil(packet) {
            let source = sources.next().context("a ring has no buffers")?;
            let mut at = 0;
            while at < packet {
                let target = targets.next().context("a ring has no buffers")?;
                let part = source.offset(at)?;
                // As much as there is, or as there is room for.
                part.copy_to_volatile_slice(*target);
                at += target.len();
            }
            packets += 1;
        }
        elapsed = start.elapsed();
    }
    black_box(&to);
    let octets = packets as f64 * (packet - HEADER) as f64;
    Ok(octets * 8e-9 / elapsed.as_secs_f64())
}

fn buffers(memory: &Memory, shape: Shape, at: usize) -> Result<Vec<vm_memory::VolatileSlice<'_>>> {
    (0..shape.size)
        .map(|id| memory.slice(at + shape.offset(id), shape.len as usize))
        .collect()
}
