// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What can be wrong with passt, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::child::Ending;

/// Why the user-mode network could not be opened.
#[derive(Debug)]
pub enum UserError {
    /// More queue pairs were wanted than a stream has.
    QueuePairs(u16),
    /// There is no such program.
    NotFound(PathBuf),
    /// The program is there and does not start.
    NotStarted {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program started and ended at once.
    Ended {
        /// The command line, to be tried by hand.
        command: String,
        /// How it ended, and what it said.
        ending: Ending,
    },
    /// A system call failed that has no reason to.
    System {
        /// What was tried.
        what: &'static str,
        /// How it ended.
        source: io::Error,
    },
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UserError::QueuePairs(wanted) => write!(
                f,
                "the user uplink has one queue pair, and {wanted} were wanted; use --queues 1, or \
                 a tap, which has more"
            ),
            UserError::NotFound(program) if program.components().count() == 1 => write!(
                f,
                "{} was not found in PATH; install the package passt (Debian, Ubuntu: \
                 sudo apt install passt; Fedora: sudo dnf install passt) or say where it is with \
                 --passt",
                program.display()
            ),
            UserError::NotFound(program) => {
                write!(f, "there is no {}; check --passt", program.display())
            }
            UserError::NotStarted { program, source } => write!(
                f,
                "{} does not start: {source}; check that it is a program that this user may run",
                program.display()
            ),
            UserError::Ended { command, ending } => write!(
                f,
                "passt ended at once: {ending}; to try it by hand without the socket: {command}"
            ),
            UserError::System { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl Error for UserError {
    // The message holds the causes' text already.
}
