// SPDX-License-Identifier: Apache-2.0 OR MIT
//! JSON messages, one a line, over a Unix socket: what QMP and the guest agent have in common.
//!
//! The commands and their answers are the `qapi` crate's types. Its own connections
//! are not used: they know no time limits, and refuse events that are newer than the
//! schema they were made from, as QEMU's `NETDEV_VHOST_USER_*` are.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qapi::{Command, Execute};
use serde_json::Value;

/// No message of QMP or the agent is longer than this (the agent caps captured output at 16 MiB).
const LONGEST: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum WireError {
    /// The other side is gone.
    Closed,
    /// The time limit has passed.
    TimedOut,
    /// The socket failed.
    Io(std::io::Error),
    /// The other side said something that is no answer to the command.
    Nonsense(String),
    /// The other side refused the command.
    Refused(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Closed => f.write_str("the connection was closed"),
            WireError::TimedOut => f.write_str("no answer within the time limit"),
            WireError::Io(e) => write!(f, "the connection failed: {e}"),
            WireError::Nonsense(text) => write!(f, "an answer that makes no sense: {text}"),
            WireError::Refused(text) => write!(f, "refused: {text}"),
        }
    }
}

impl std::error::Error for WireError {}

impl From<std::io::Error> for WireError {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => WireError::TimedOut,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => WireError::Closed,
            _ => WireError::Io(e),
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    path: PathBuf,
    stream: UnixStream,
    /// Bytes that came after the last whole line.
    pending: Vec<u8>,
    /// How many of them are known to hold no end of line.
    searched: usize,
}

impl Wire {
    /// Connects, as soon as the other side listens. `alive` tells whether waiting still makes sense.
    pub fn connect(
        path: &Path,
        deadline: Instant,
        mut alive: impl FnMut() -> bool,
    ) -> Result<Self, WireError> {
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    return Ok(Wire {
                        path: path.to_owned(),
                        stream,
                        pending: Vec::new(),
                        searched: 0,
                    });
                }
                Err(e)
                    if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
                {
                    return Err(e.into());
                }
                Err(_) if !alive() => return Err(WireError::Closed),
                Err(_) if Instant::now() >= deadline => return Err(WireError::TimedOut),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Sends a command.
    pub fn send<C: Command>(&mut self, command: &C) -> Result<(), WireError> {
        let mut line = serde_json::to_vec(&Execute::<&C>::from(command))
            .map_err(|e| WireError::Nonsense(format!("{} cannot be said in JSON: {e}", C::NAME)))?;
        log::trace!(
            "{} <- {}",
            self.path.display(),
            String::from_utf8_lossy(&line)
        );
        line.push(b'\n');
        self.send_bytes(&line)
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.stream
            .set_write_timeout(Some(Duration::from_secs(10)))?;
        self.stream.write_all(bytes)?;
        Ok(())
    }

    /// Receives a line and reads it as JSON.
    pub fn receive(&mut self, deadline: Instant) -> Result<Value, WireError> {
        let line = self.receive_line(deadline)?;
        serde_json::from_slice(&line)
            .map_err(|e| WireError::Nonsense(format!("{} ({e})", String::from_utf8_lossy(&line))))
    }

    /// Receives a line. What has come of a line stays for the next call when the time is up.
    pub fn receive_line(&mut self, deadline: Instant) -> Result<Vec<u8>, WireError> {
        loop {
            if let Some(at) = self
                .pending
                .iter()
                .skip(self.searched)
                .position(|b| *b == b'\n')
            {
                let rest = self.pending.split_off(self.searched + at + 1);
                self.searched = 0;
                let line = std::mem::replace(&mut self.pending, rest);
                log::trace!(
                    "{} -> {}",
                    self.path.display(),
                    String::from_utf8_lossy(&line)
                );
                return Ok(line);
            }
            self.searched = self.pending.len();
            if self.pending.len() > LONGEST {
                return Err(WireError::Nonsense("a line without end".into()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WireError::TimedOut);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; 16384];
            let n = match self.stream.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            if n == 0 {
                return Err(WireError::Closed);
            }
            self.pending.extend_from_slice(&buffer[..n]);
        }
    }

    /// Forgets what has come so far.
    pub fn discard_pending(&mut self) {
        self.pending.clear();
        self.searched = 0;
    }
}

/// Reads an answer as that of command `C`.
pub fn answer<C: Command>(message: Value) -> Result<C::Ok, WireError> {
    if let Some(error) = message.get("error") {
        let description = error
            .get("desc")
            .and_then(Value::as_str)
            .map_or_else(|| error.to_string(), str::to_owned);
        return Err(WireError::Refused(format!("{}: {description}", C::NAME)));
    }
    match message.get("return") {
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|e| WireError::Nonsense(format!("{} answered {value} ({e})", C::NAME))),
        None => Err(WireError::Nonsense(message.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi::qmp::{qmp_capabilities, query_status};

    fn pair() -> (Wire, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let wire = Wire {
            path: PathBuf::new(),
            stream: ours,
            pending: Vec::new(),
            searched: 0,
        };
        (wire, theirs)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(30)
    }

    #[test]
    fn line_in_pieces_survives_a_time_limit() {
        let (mut wire, mut peer) = pair();
        peer.write_all(b"{\"return\":").unwrap();
        assert!(matches!(wire.receive(soon()), Err(WireError::TimedOut)));
        peer.write_all(b" {}}\n{\"return\": 2}\n{\"ev").unwrap();
        assert_eq!(
            wire.receive(soon()).unwrap().to_string(),
            r#"{"return":{}}"#
        );
        assert_eq!(wire.receive(soon()).unwrap().to_string(), r#"{"return":2}"#);
        assert!(matches!(wire.receive(soon()), Err(WireError::TimedOut)));
        drop(peer);
        assert!(matches!(wire.receive(soon()), Err(WireError::Closed)));
    }

    #[test]
    fn commands_are_said_as_qmp_wants_them() {
        let (mut wire, mut peer) = pair();
        wire.send(&qmp_capabilities { enable: None }).unwrap();
        let mut buffer = [0; 100];
        let n = peer.read(&mut buffer).unwrap();
        let said: Value = serde_json::from_slice(&buffer[..n]).unwrap();
        assert_eq!(said["execute"], "qmp_capabilities");
        assert_eq!(buffer[n - 1], b'\n');
    }

    #[test]
    fn answers_that_are_none_are_told_apart() {
        let read = |text: &str| answer::<query_status>(serde_json::from_str(text).unwrap());
        let good = r#"{"return": {"status": "running", "running": true}}"#;
        assert!(read(good).unwrap().running);
        let refused = r#"{"error": {"class": "GenericError", "desc": "no"}}"#;
        assert!(matches!(read(refused), Err(WireError::Refused(text)) if text.ends_with("no")));
        assert!(matches!(
            read(r#"{"return": 7}"#),
            Err(WireError::Nonsense(_))
        ));
        assert!(matches!(
            read(r#"{"event": "X"}"#),
            Err(WireError::Nonsense(_))
        ));
    }
}
