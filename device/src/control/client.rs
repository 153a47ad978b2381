// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The other end of the control socket, for the subcommands: blocking, with a time limit.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// How long an answer may take.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest line taken from a server. The longest we write has a few kilobytes.
const MAX_LINE: usize = 4 << 20;

/// A connection whose negotiation is done.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    timeout: Duration,
    received: Vec<u8>,
}

/// Why a command could not be carried out.
#[derive(Debug)]
pub enum ClientError {
    /// There is nobody to talk to.
    Unreachable {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody is there and said nothing for too long.
    TimedOut {
        /// The control socket.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// The connection broke.
    Lost {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Who listens does not speak this protocol.
    Protocol {
        /// The control socket.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The backend refuses.
    Refused(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Unreachable { path, error } => {
                let path = path.display();
                match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => write!(
                        f,
                        "no backend is listening on {path}: is `ferronic serve --control {path}` \
                         running?"
                    ),
                    ErrorKind::PermissionDenied => write!(
                        f,
                        "may not connect to {path}: the control socket belongs to the user who \
                         started `ferronic serve`; be that user or root"
                    ),
                    _ => write!(f, "cannot connect to {path}: {error}"),
                }
            }
            ClientError::TimedOut { path, timeout } => write!(
                f,
                "the process listening on {} did not answer within {} s: is it stopped, or \
                 something other than ferronic?",
                path.display(),
                timeout.as_secs_f32()
            ),
            ClientError::Lost { path, error } => write!(
                f,
                "the connection to {} broke: {error}; has the backend ended? Its log tells why",
                path.display()
            ),
            ClientError::Protocol { path, what } => write!(
                f,
                "what listens on {} is no ferronic control socket: {what}",
                path.display()
            ),
            ClientError::Refused(desc) => write!(f, "the backend refuses: {desc}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl Client {
    /// Connects and negotiates. `timeout` holds for this and for every command.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = connect(path, timeout).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => ClientError::TimedOut {
                path: path.into(),
                timeout,
            },
            _ => ClientError::Unreachable {
                path: path.into(),
                error,
            },
        })?;
        let mut client = Client {
            stream,
            path: path.into(),
            timeout,
            received: Vec::new(),
        };
        let greeting = client.read_value(Instant::now() + timeout)?;
        if let Some(error) = greeting.get("error") {
            return Err(refused(error));
        }
        if greeting.get("QMP").is_none() {
            return Err(client.protocol("it did not send the greeting"));
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Carries out a command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let request = json!({"execute": command, "arguments": arguments});
        self.write(format!("{request}\n").as_bytes(), deadline)?;
        loop {
            let mut answer = self.read_value(deadline)?;
            if let Some(error) = answer.get("error") {
                return Err(refused(error));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            // Events may come between; nothing here wants them.
            if answer.get("event").is_none() {
                return Err(self.protocol("an answer is neither return, error nor event"));
            }
        }
    }

    /// Carries out a command without arguments and reads its answer as a `T`.
    pub fn query<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, ClientError> {
        self.ask(command, Map::new())
    }

    /// Carries out a command and reads its answer as a `T`.
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Map<String, Value>,
    ) -> Result<T, ClientError> {
        let answer = self.execute(command, arguments.into())?;
        serde_json::from_value(answer).map_err(|e| {
            self.protocol(&format!(
                "the answer to {command} is not what this version of ferronic expects: {e}"
            ))
        })
    }

    /// Waits until the backend closes the connection, which it does as the last thing of its life.
    pub fn wait_closed(mut self) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.read_value(deadline) {
                Ok(_) => {}
                Err(ClientError::Lost { .. }) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn read_value(&mut self, deadline: Instant) -> Result<Value, ClientError> {
        loop {
            if let Some(end) = self.received.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|e| self.protocol(&format!("a line is not JSON: {e}")));
            }
            if self.received.len() > MAX_LINE {
                return Err(self.protocol("a line has no end"));
            }
            self.arm(deadline)?;
            let mut chunk = [0u8; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(self.broken(ErrorKind::UnexpectedEof.into())),
                Ok(count) => self
                    .received
                    .extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            self.arm(deadline)?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    /// Lets the next read or write take no longer than until `deadline`.
    fn arm(&self, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.broken(ErrorKind::WouldBlock.into()));
        }
        self.stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.set_write_timeout(Some(left)))
            .map_err(|e| self.broken(e))
    }

    fn broken(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::TimedOut {
                path,
                timeout: self.timeout,
            },
            _ => ClientError::Lost { path, error },
        }
    }

    fn protocol(&self, what: &str) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            what: what.into(),
        }
    }
}

/// A connected socket. By hand, because a connect to a full backlog must time out too.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    let deadline = Instant::now() + timeout;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::INTR) if Instant::now() < deadline => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn refused(error: &Value) -> ClientError {
    let desc = error.get("desc").and_then(Value::as_str);
    ClientError::Refused(desc.unwrap_or("without saying why").into())
}
