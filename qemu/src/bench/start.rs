// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How soon a vhost-user back-end is there: from the moment at which its program begins until it has
//! answered a frontend's first question, which features it has.
//!
//! Not until its socket can be connected to: a program may listen first and then do what it has to do
//! before it can serve. And not from the lab's `fork`: programs of a tool root begin later than ours,
//! when the lab has entered the root for them.
//!
//! Nobody looks for the socket: inotify tells when something happens in its directory. In the short time
//! between the making of a socket's file and `listen` it is tried again and again.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use crate::host::tail;
use crate::sandbox::tool::tell_exec;

/// How long one may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How long it may be silent before somebody looks whether it is still there.
const LOOK: Duration = Duration::from_millis(200);

/// A back-end to be started.
#[derive(Debug)]
pub struct Starter {
    /// How.
    pub command: Command,
    /// Whether that enters a tool root first.
    pub in_tool_root: bool,
    /// Where it will listen for frontends.
    pub socket: PathBuf,
    /// Where it logs to.
    pub log: PathBuf,
}

/// One that has been started. It ends when dropped.
#[derive(Debug)]
pub struct Started {
    /// How long that took.
    pub took: Duration,
    process: Child,
}

impl Starter {
    /// Starts it and waits for its answer.
    pub fn start(self) -> Result<Started> {
        let Starter {
            mut command,
            in_tool_root,
            socket,
            log,
        } = self;
        let directory = socket.parent().context("a socket without a directory")?;
        let mut watch = Watch::of(directory)?;
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        let teller = match in_tool_root {
            true => Some(Teller::new(&mut command, socket.with_extension("tell"))?),
            false => None,
        };
        let what = command.get_program().to_owned();
        let process = command.spawn();
        // The standard library comes back when the program has begun, or cannot.
        let mut began = Instant::now();
        let process = process.with_context(|| format!("cannot run {}", what.display()))?;
        let mut started = Started {
            took: Duration::ZERO,
            process,
        };
        if let Some(teller) = teller {
            began = teller.wait()?;
        }
        let answered = started.wait(&socket, &mut watch, began + LIMIT);
        answered.with_context(|| {
            let said = std::fs::read(&log).unwrap_or_default();
            format!("it said ({}):\n{}", log.display(), tail(&said))
        })?;
        started.took = began.elapsed();
        Ok(started)
    }
}

impl Started {
    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it answers.
    fn wait(&mut self, socket: &Path, watch: &mut Watch, deadline: Instant) -> Result<()> {
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return ask(stream),
                Err(e) if e.kind() == ErrorKind::NotFound => watch.wait(LOOK)?,
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::thread::yield_now(),
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("cannot connect to {}", socket.display()));
                }
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the back-end ended with {status}");
            }
            ensure!(Instant::now() < deadline, "the back-end does not listen");
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A frontend's first question.
fn ask(stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let features = Frontend::from_stream(stream, 2).get_features();
    let features = features.context("the back-end does not say which features it has")?;
    ensure!(features != 0, "the back-end has no features");
    Ok(())
}

/// Tells when a program of a tool root begins.
#[derive(Debug)]
struct Teller {
    listener: UnixListener,
    path: PathBuf,
}

impl Teller {
    fn new(command: &mut Command, path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        tell_exec(command, &path);
        Ok(Teller { listener, path })
    }

    /// Waits for that, and says when it was.
    fn wait(self) -> Result<Instant> {
        ensure!(
            readable(&self.listener, LIMIT)?,
            "the program does not begin"
        );
        let (mut connection, _) = self.listener.accept()?;
        connection.set_read_timeout(Some(LIMIT))?;
        let mut nothing = [0];
        let read = connection.read(&mut nothing);
        let began = Instant::now();
        ensure!(read.context("the program does not begin")? == 0);
        Ok(began)
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        // Left over it would be in nobody's way.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What happens in a directory.
#[derive(Debug)]
struct Watch(OwnedFd);

impl Watch {
    fn of(directory: &Path) -> Result<Self> {
        let what = || format!("cannot watch {}", directory.display());
        let fd = inotify::init(CreateFlags::CLOEXEC).with_context(what)?;
        // Some bind a socket where it is to be, others move it there.
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, flags).with_context(what)?;
        Ok(Watch(fd))
    }

    /// Waits until something has happened since the last time, but not forever.
    fn wait(&mut self, limit: Duration) -> Result<()> {
        if readable(&self.0, limit)? {
            let mut events = [0; 4096];
            rustix::io::read(&self.0, &mut events).context("cannot read what has happened")?;
        }
        Ok(())
    }
}

fn readable(fd: impl AsFd, limit: Duration) -> Result<bool> {
    let limit = Timespec::try_from(limit).context("an endless time limit")?;
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e).context("cannot wait"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_appears_in_a_directory_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::of(dir.path()).unwrap();
        std::fs::write(dir.path().join("socket"), "").unwrap();
        let start = Instant::now();
        watch.wait(LIMIT).unwrap();
        assert!(start.elapsed() < LIMIT / 2);
        // It has been seen: nothing else happens.
        watch.wait(Duration::from_millis(10)).unwrap();
        assert!(!readable(&watch.0, Duration::ZERO).unwrap());
    }

    #[test]
    fn the_end_of_a_connection_tells_that_a_program_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tell");
        let teller = Teller::new(&mut Command::new("true"), path.clone()).unwrap();
        let connection = UnixStream::connect(&path).unwrap();
        let before = Instant::now();
        drop(connection);
        assert!(teller.wait().unwrap() >= before);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_ends_before_it_listens_is_an_error_with_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such uplink; exit 3"]);
        let starter = Starter {
            command,
            in_tool_root: false,
            socket: dir.path().join("socket"),
            log: dir.path().join("log"),
        };
        let error = format!("{:#}", starter.start().unwrap_err());
        assert!(error.contains("no such uplink"), "{error}");
        assert!(error.contains('3'), "{error}");
    }
}
