// SPDX-License-Identifier: Apache-2.0 OR MIT
//! iperf3 between the guest and the far end of the cable.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cable::INTERFACE;
use crate::guest::{Guest, Running};
use crate::lab::Lab;

/// How much longer than asked for a transfer may take.
const GRACE: Duration = Duration::from_secs(20);
/// How long the server may take to be done with the client before: it looks after one at a time.
const SERVER_FREE: Duration = Duration::from_secs(10);

/// Which way the data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the far end.
    GuestToHost,
    /// From the far end to the guest.
    HostToGuest,
}

/// An iperf3 server on the host's side. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
}

impl Server {
    /// Starts a server on all addresses of the run's network namespace.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut process = lab
            .tools
            .command("iperf3")
            .args(["--server", "--forceflush"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run iperf3")?;
        let stdout = process.stdout.take();
        let server = Server { process };
        let Some(stdout) = stdout else {
            bail!("iperf3's output is lost");
        };
        let mut lines = BufReader::new(stdout).lines();
        if !lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("listening"))
        {
            bail!("iperf3 does not listen: is its port taken?");
        }
        // It goes on talking; an unread pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a transfer came to.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// What the receiver got.
    pub gbps: f64,
    /// Segments that TCP sent again; 0 for UDP.
    pub retransmits: u64,
    /// Datagrams that were lost, in percent; 0 for TCP.
    pub lost_percent: f64,
}

/// Less than this, in Gb/s, is TCP that is stuck, sending the same few segments again. More says
/// nothing on how fast the NIC is, which is for benchmarks: hosts are busy, and kernels check a lot.
const STUCK: f64 = 0.001;

impl Transfer {
    /// Fails if next to nothing got through.
    pub fn ensure_flowed(&self) -> Result<()> {
        ensure!(self.gbps > STUCK, "only {:.6} Gb/s", self.gbps);
        Ok(())
    }
}

/// An iperf3 client in the guest.
#[derive(Debug, Clone)]
pub struct Client {
    /// The server's address as the guest sees it.
    pub server: String,
    /// Which way.
    pub direction: Direction,
    /// For how long.
    pub seconds: u32,
    /// More options of iperf3.
    pub options: String,
    /// Whether the options tell how much is sent, and no time ends it.
    pub by_amount: bool,
}

impl Client {
    /// A TCP transfer.
    pub fn new(server: &str, direction: Direction, seconds: u32) -> Self {
        Client {
            server: server.to_owned(),
            direction,
            seconds,
            options: String::new(),
            by_amount: false,
        }
    }

    /// The same with more options.
    pub fn with(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// The command in the guest.
    pub fn command(&self) -> String {
        let reverse = if self.direction == Direction::HostToGuest {
            " --reverse"
        } else {
            ""
        };
        let time = if self.by_amount {
            String::new()
        } else {
            format!(" --time {}", self.seconds)
        };
        // A lost control connection would otherwise be waited for until TCP gives up.
        format!(
            "iperf3 --json --connect-timeout 5000 --client {}{time} {}{reverse}",
            self.server, self.options
        )
    }

    /// Starts it, and comes back when its traffic flows. It is for the caller to end.
    pub fn start<'a>(&self, guest: &'a Guest) -> Result<Running<'a>> {
        let signs = TURNED_AWAY.map(|sign| format!("*'{sign}'*")).join("|");
        let running = guest.spawn(&format!(
            "end=$(($(date +%s) + {})); \
             while :; do \
                 said=$({}); code=$?; \
                 case $said in {signs}) [ $(date +%s) -lt $end ] && sleep 0.3 && continue;; esac; \
                 printf '%s\n' \"$said\"; exit $code; \
             done",
            SERVER_FREE.as_secs(),
            self.command(),
        ))?;
        // More than what probes and neighbour discovery send.
        let flows = wait_flow(guest, self.direction, 100_000, SERVER_FREE + GRACE);
        if let Err(e) = flows {
            let said = running
                .poll()?
                .map_or(String::new(), |output| output.stdout);
            running.kill()?;
            return Err(e.context(format!("`{}` printed: {said}", self.command())));
        }
        Ok(running)
    }

    /// How long it may take.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds.into()) + GRACE
    }

    /// Runs it to its end.
    pub fn run(&self, guest: &Guest) -> Result<Transfer> {
        let start = Instant::now();
        loop {
            let output = guest.try_sh(&self.command(), self.limit())?;
            match Transfer::parse(&output.stdout) {
                Err(e) if is_turned_away(&e) && start.elapsed() < SERVER_FREE => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                result => {
                    return result.with_context(|| {
                        format!(
                            "in the guest, `{}` failed: {}",
                            self.command(),
                            output.stderr
                        )
                    });
                }
            }
        }
    }
}

/// What a client says when it was another's turn: the server says so and hangs up, and sometimes only
/// the latter arrives.
const TURNED_AWAY: [&str; 2] = ["the server is busy", "unable to receive control message"];

fn is_turned_away(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    TURNED_AWAY.iter().any(|sign| text.contains(sign))
}

/// Waits until the traffic that is under way has moved this many bytes.
pub fn wait_flow(guest: &Guest, direction: Direction, bytes: u64, limit: Duration) -> Result<()> {
    let file = match direction {
        Direction::GuestToHost => "tx_bytes",
        Direction::HostToGuest => "rx_bytes",
    };
    // One command, however long it takes: in a guest that is busy with traffic each takes its time.
    let script = format!(
        "cd /sys/class/net/{INTERFACE}/statistics && enough=$(($(cat {file}) + {bytes})) && \
         until [ $(cat {file}) -ge $enough ]; do sleep 0.02; done"
    );
    guest
        .sh_within(&script, limit)
        .with_context(|| format!("traffic does not flow within {} s", limit.as_secs()))?;
    Ok(())
}

impl Transfer {
    /// Reads iperf3's JSON.
    pub fn parse(text: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(text)
            .with_context(|| format!("iperf3 printed no JSON: {text}"))?;
        if let Some(error) = report.get("error").and_then(Value::as_str) {
            bail!("iperf3: {error}");
        }
        let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
        let bits = number("/end/sum_received/bits_per_second")
            .context("iperf3's report has no sum of what was received")?;
        Ok(Transfer {
            gbps: bits / 1e9,
            retransmits: report
                .pointer("/end/sum_sent/retransmits")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            lost_percent: number("/end/sum/lost_percent").unwrap_or(0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_a_report() {
        let report = r#"{"end": {"sum_sent": {"retransmits": 3, "bits_per_second": 1e9},
                         "sum_received": {"bits_per_second": 2.5e9}, "sum": {"lost_percent": 0.5}}}"#;
        let transfer = Transfer::parse(report).unwrap();
        assert_eq!((transfer.gbps, transfer.retransmits), (2.5, 3));
        assert_eq!(transfer.lost_percent, 0.5);
    }

    #[test]
    fn what_iperf3_complains_of_is_told() {
        let error = Transfer::parse(r#"{"error": "the server is busy"}"#).unwrap_err();
        assert!(error.to_string().contains("busy"));
        assert!(is_turned_away(&error));
        let error = Transfer::parse("").unwrap_err();
        assert!(!is_turned_away(&error));
        assert!(Transfer::parse(r#"{"end": {}}"#).is_err());
    }
}
