// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lab, run as `cargo lab`: makes QEMU, a guest kernel and a guest out of Debian
//! packages, boots machines with the ferronic NIC, and shows, tests and measures it.
//!
//! A command that boots guests runs in two processes. The outer one makes what is
//! missing, where the network is; the inner one does the work, in namespaces of its own
//! (see [`sandbox::net`]).

mod accel;
mod artefacts;
mod backend;
mod bench;
mod cable;
mod cache;
mod carrier;
mod cli;
mod demo;
mod driver;
mod far_end;
mod guest;
mod host;
mod kernel_log;
mod ktap;
mod lab;
mod load;
mod machine;
mod meanwhile;
mod net;
mod process;
mod progress;
mod sandbox;
mod scenarios;
mod shell;
mod station;
mod test;
mod traffic;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use clap::Parser;

use cache::{Cache, Logs};
use cli::{Cli, Command};
use lab::{Lab, Needs, When};
use meanwhile::Meanwhile;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("lab: error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Tool(args) => sandbox::tool::exec(args)?,
        Command::Clean => Cache::open()?.clean()?,
        Command::Exec { program } => exec(program)?,
        Command::Prepare => {
            lab::prepare(&cli.options, Needs::ALL)?;
        }
        Command::Test(args) if args.list => test::list(&cli.options),
        command => {
            return match sandbox::net::inside()? {
                None => outside(cli, command),
                Some(run) => inside(cli, command, run),
            };
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The outer process: makes what is missing, then calls itself in new namespaces.
fn outside(cli: &Cli, command: &Command) -> Result<ExitCode> {
    if let Command::Bench(args) = command {
        bench::prepare(args)?;
        if !args.has_guests() {
            lab::build_ferronic()?;
            let logs = Cache::open()?.new_log_dir(command.name())?;
            return pass_on(sandbox::net::run_inside(logs.path())?, &logs);
        }
    }
    let needs = command.needs(&cli.options);
    let parts = lab::prepare(&cli.options, needs)?;
    if command.needs_ferronic() {
        lab::build_ferronic()?;
    }
    let logs = parts.cache().new_log_dir(command.name())?;
    if let Command::Test(args) = command {
        let counts = test::on_host(args, &cli.options, &parts)?;
        let _meanwhile = match needs.debug_kernel {
            When::Later => Some(Meanwhile::prepare(logs.path())?),
            When::Now | When::Never => None,
        };
        let status = sandbox::net::run_inside(logs.path())?;
        return Ok(if test::conclude(counts, logs.path(), status) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    pass_on(sandbox::net::run_inside(logs.path())?, &logs)
}

/// The inner process has ended: so does this one.
fn pass_on(status: ExitStatus, logs: &Logs) -> Result<ExitCode> {
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => bail!(
            "the lab died of signal {:?}; logs are in {}",
            status.signal(),
            logs.path().display()
        ),
    }
}

/// The inner process: the work itself.
fn inside(cli: &Cli, command: &Command, run: sandbox::net::Run) -> Result<ExitCode> {
    sandbox::net::settle()?;
    if let Command::Bench(args) = command
        && !args.has_guests()
    {
        bench::run_without_guests(&run, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let parts = lab::prepare(&cli.options, command.needs(&cli.options))?;
    let lab = parts.into_lab(&cli.options, run)?;
    net::settle(&lab)?;
    match command {
        Command::Demo(args) => demo::run(&lab, args)?,
        Command::Bench(args) => bench::run(&lab, args)?,
        Command::Shell(args) => shell::run(&lab, args)?,
        Command::Run { script } => return run_script(&lab, script),
        Command::Test(args) => {
            if !test::in_guests(&lab, args, &cli.options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        _ => bail!("`{}` needs no guest", command.name()),
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(program: &[std::ffi::OsString]) -> Result<()> {
    let tools = artefacts::tools::tools(&Cache::open()?)?;
    let Some((program, arguments)) = program.split_first() else {
        bail!("no program named");
    };
    let error = tools.command(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn run_script(lab: &Lab, script: &str) -> Result<ExitCode> {
    net::make_tap(lab, false)?;
    let nic = machine::nic::Nic::Tap {
        name: net::TAP.into(),
        queues: 1,
    };
    let machine = machine::Machine::boot(lab, &lab.spec("run", nic))?;
    log::info!("booted in {:.1} s", machine.boot_time.as_secs_f64());
    let output = machine
        .guest
        .try_sh(script, std::time::Duration::from_secs(3600))?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    machine.quit()?;
    Ok(ExitCode::from(u8::try_from(output.code).unwrap_or(1)))
}
