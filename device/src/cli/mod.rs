// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The command line, one file a subcommand.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::{Map, Value};

use crate::control::client::{Client, ClientError, DEFAULT_TIMEOUT};

pub mod completions;
pub mod follow;
pub mod frontend_socket;
pub mod link;
pub mod man;
pub mod port;
pub mod qemu_args;
pub mod quit;
pub mod serve;
pub mod serve_options;
pub mod stats;
pub mod status;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the operation failed
  2  the command line is wrong
  3  the backend cannot be reached, or does not answer

Example, in three terminals:
  ferronic serve --socket-path /tmp/nic.sock --control /tmp/nic.ctl --uplink user
  qemu-system-x86_64 $(ferronic qemu-args --socket-path /tmp/nic.sock) disk.img
  ferronic link flap --control /tmp/nic.ctl

Without a subcommand, options are those of `serve`: this is how management software starts \
programs from QEMU's vhost-user directory.";

/// A virtio-net NIC for virtual machines, as a process of its own.
///
/// `ferronic serve` is the NIC: QEMU plugs it into a guest over a vhost-user socket. The other
/// subcommands look into the running NIC, pull its cable, and help to attach it.
#[derive(Debug, Parser)]
#[command(name = "ferronic", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Be the NIC: wait for a frontend (QEMU) and serve it.
    Serve(Box<serve_options::ServeArgs>),
    /// Pull the cable, put it back, or see whether it is in.
    Link(link::LinkArgs),
    /// Add ports to a switch, remove them, or see what is at them.
    Port(port::PortArgs),
    /// Print what the NIC has counted, by queue.
    Stats(stats::StatsArgs),
    /// Print what the NIC is, its link, and who is plugged in.
    Status(status::StatusArgs),
    /// End the backend, and wait until its sockets are gone.
    Quit(quit::QuitArgs),
    /// Print the QEMU options that attach the NIC, ready to paste.
    QemuArgs(qemu_args::QemuArgs),
    /// Print a manual page (roff), for `man -l -`.
    Man(man::ManArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
}

/// Where the backend is controlled; the same for every subcommand that talks to one.
#[derive(Clone, Debug, Args)]
pub struct ControlArgs {
    /// Control socket of the backend: what `ferronic serve --control` was given.
    #[arg(long, value_name = "PATH")]
    pub control: PathBuf,

    /// Seconds to wait for the backend.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

impl ControlArgs {
    /// Connects to the backend.
    pub fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.control, Duration::from_secs(self.timeout))
    }
}

/// The arguments of a command that may be for a port of a switch.
pub fn port_argument(port: Option<&str>) -> Map<String, Value> {
    let port = port.map(|port| ("port".into(), port.into()));
    port.into_iter().collect()
}

/// Why a subcommand failed; decides the exit code.
#[derive(Debug)]
pub enum Failure {
    /// The operation failed: exit code 1.
    Operation(String),
    /// The command line is wrong in a way that the parser cannot see: exit code 2.
    Usage(String),
    /// The backend cannot be reached: exit code 3.
    Unreachable(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Operation(text) | Failure::Usage(text) | Failure::Unreachable(text) => {
                f.write_str(text)
            }
        }
    }
}

impl Failure {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Operation(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
        })
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(_) | ClientError::Protocol { .. } => {
                Failure::Operation(error.to_string())
            }
            _ => Failure::Unreachable(error.to_string()),
        }
    }
}

/// Does what the process's command line says.
pub fn main() -> ExitCode {
    let arguments = with_default_subcommand(std::env::args_os().collect());
    if asks_for_capabilities(&arguments) {
        return finish(serve::print_capabilities());
    }
    match Cli::try_parse_from(arguments) {
        Ok(cli) => finish(run(cli.command)),
        Err(e) => {
            // Help and version come here too. A closed standard output is no reason to panic.
            let _ = e.print();
            ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2))
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(*args),
        Command::Link(args) => link::run(&args),
        Command::Port(args) => port::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Quit(args) => quit::run(&args),
        Command::QemuArgs(args) => qemu_args::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "ferronic: {failure}");
            failure.exit_code()
        }
    }
}

/// Makes `serve` the subcommand of a command line that begins with an option, as the ones of QEMU's
/// backend program conventions do (`ferronic --socket-path=S`). A rewrite and not a second set of
/// options, so that `--help` shows each option in one place.
fn with_default_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let first = arguments.get(1).and_then(|first| first.to_str());
    let is_ours = |first: &str| ["-h", "--help", "-V", "--version"].contains(&first);
    if first.is_some_and(|first| first.starts_with('-') && !is_ours(first)) {
        arguments.insert(1, "serve".into());
    }
    arguments
}

/// Whether this is `serve --print-capabilities`. Looked for before parsing, because the conventions
/// want every other argument ignored then, wrong ones included.
fn asks_for_capabilities(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|first| first == "serve")
        && arguments.iter().any(|a| a == "--print-capabilities")
}

/// Writes to standard output. A reader that has gone (`ferronic stats | head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::Operation(format!(
            "cannot write to standard output: {e}"
        ))),
        _ => Ok(()),
    }
}

/// Writes a value as indented JSON.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn defaulted(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let words = with_default_subcommand(words);
        words
            .join(OsString::from(" ").as_os_str())
            .into_string()
            .unwrap()
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_leading_option_means_serve() {
        assert_eq!(defaulted("f --socket-path=S"), "f serve --socket-path=S");
        assert_eq!(defaulted("f --fd 3"), "f serve --fd 3");
        assert_eq!(defaulted("f --help"), "f --help");
        assert_eq!(defaulted("f -V"), "f -V");
        assert_eq!(defaulted("f link up"), "f link up");
        assert_eq!(defaulted("f"), "f");
    }

    #[test]
    fn capabilities_are_asked_for_in_both_forms_and_whatever_else_is_said() {
        let asks = |line: &str| {
            let words = line.split(' ').map(OsString::from).collect();
            asks_for_capabilities(&with_default_subcommand(words))
        };
        assert!(asks("f --print-capabilities"));
        assert!(asks("f serve --nonsense --print-capabilities"));
        assert!(!asks("f link --print-capabilities"));
    }
}
