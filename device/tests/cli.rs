// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `ferronic` as users and scripts see it: exit codes, output, sockets, signals.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

fn ferronic(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferronic"))
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A backend process, killed in the end if it has not ended by then.
struct Backend {
    child: Child,
    dir: tempfile::TempDir,
}

impl Backend {
    fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path(), more);
        let backend = Backend { child, dir };
        backend.wait_ready();
        backend
    }

    fn wait_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.control()).is_err() {
            assert!(Instant::now() < deadline, "not ready");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("ctl")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Runs a subcommand on this backend.
    fn ask(&self, command: &str) -> Output {
        let control = self.control();
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--control", control.to_str().unwrap()]);
        ferronic(&arguments)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, more: &[&str]) -> Child {
    // As management software would: without the subcommand's name, and with `=`.
    Command::new(env!("CARGO_BIN_EXE_ferronic"))
        .arg(format!("--socket-path={}", dir.join("sock").display()))
        .arg("--control")
        .arg(dir.join("ctl"))
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn workers_are_pinned_in_turn() {
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = cpus_allowed(&own);
    let (first, last) = (allowed[0], allowed[allowed.len() - 1]);
    let list = format!("{last},{first}");
    let backend = Backend::start(&["--queues", "3", "--cpus", &list]);
    let tasks = format!("/proc/{}/task", backend.child.id());
    let threads = || -> Vec<(String, Vec<usize>)> {
        let tasks = std::fs::read_dir(&tasks).unwrap();
        let threads = tasks.map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let name = status.lines().next().unwrap().split_once('\t').unwrap().1;
            (name.to_owned(), cpus_allowed(&status))
        });
        threads.collect()
    };
    // A thread gets its name, and then its CPU, when it first runs.
    let deadline = Instant::now() + PATIENCE;
    for (number, cpu) in [last, first, last].into_iter().enumerate() {
        let worker = (format!("pair-{number}"), vec![cpu]);
        while !threads().contains(&worker) {
            assert!(Instant::now() < deadline, "{worker:?} of {:?}", threads());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    for (name, cpus) in threads() {
        if !name.starts_with("pair-") {
            assert_eq!(cpus, allowed, "{name}");
        }
    }
}

/// The CPUs that `/proc/PID/status` lists.
fn cpus_allowed(status: &str) -> Vec<usize> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap();
    let number = |text: &str| text.parse::<usize>().unwrap();
    let parts = list.split(',').map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first)..=number(last)
    });
    parts.flatten().collect()
}

#[test]
fn link_goes_down_and_up_and_shows() {
    let backend = Backend::start(&["--speed", "2500"]);
    for (command, said) in [
        ("link show", "link up, 2500 Mbit/s, uplink: up\n"),
        ("link down", "link down\n"),
        ("link down", "link down already\n"),
        ("link show", "link down, 2500 Mbit/s, uplink: up\n"),
        ("link up", "link up\n"),
        (
            "link flap --count 2 --down-ms 1 --up-ms 1",
            "link flapped 2 times, now up\n",
        ),
        ("link flap --down-ms 1", "link flapped once, now up\n"),
    ] {
        let output = backend.ask(command);
        assert_eq!(
            (code(&output), stdout(&output).as_str()),
            (0, said),
            "{command}"
        );
    }
    let shown: Value = serde_json::from_slice(&backend.ask("link show --json").stdout).unwrap();
    assert_eq!(shown["up"], true);
    let set: Value = serde_json::from_slice(&backend.ask("link up --json").stdout).unwrap();
    assert_eq!(set["changed"], false);
}

#[test]
fn an_interrupted_flap_puts_the_cable_back() {
    let backend = Backend::start(&[]);
    let child = Command::new(env!("CARGO_BIN_EXE_ferronic"))
        .args(["link", "flap", "--down-ms", "100000", "--control"])
        .arg(backend.control())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while stdout(&backend.ask("link show")).contains("link up") {
        assert!(Instant::now() < deadline);
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("interrupted"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&backend.ask("link show")).contains("link up"));
}

#[test]
fn status_and_stats_for_people_and_programs() {
    let backend = Backend::start(&["--queues=3", "--mac", "52:54:00:00:00:01", "--link=down"]);
    let text = stdout(&backend.ask("status"));
    assert!(
        text.contains("mac 52:54:00:00:00:01, mtu 1500, queue pairs 3"),
        "{text}"
    );
    assert!(text.contains("link down"), "{text}");
    assert!(text.contains("no frontend connected"), "{text}");
    let all: Value = serde_json::from_slice(&backend.ask("status --json").stdout).unwrap();
    assert_eq!(all["status"]["queue-pairs"], 3);
    assert_eq!(all["link"]["up"], false);
    assert_eq!(all["frontend"]["connected"], false);
    let text = stdout(&backend.ask("stats"));
    assert_eq!(text.lines().count(), 7, "{text}");
    let all: Value = serde_json::from_slice(&backend.ask("stats --json").stdout).unwrap();
    assert_eq!(all["queues"][2]["tx"]["packets"], 0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ferronic"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn quit_and_signals_end_it_cleanly() {
    for end in ["quit", "TERM", "INT"] {
        let mut backend = Backend::start(&[]);
        match end {
            "TERM" => backend.signal(Signal::TERM),
            "INT" => backend.signal(Signal::INT),
            _ => {
                assert_eq!(code(&backend.ask("quit")), 0);
                // It has ended when `ferronic quit` has.
                assert!(!backend.control().exists() && !backend.socket().exists());
            }
        }
        assert_eq!(backend.wait().code(), Some(0), "{end}");
        assert!(!backend.control().exists(), "{end}");
        assert!(!backend.socket().exists(), "{end}");
    }
}

#[test]
fn sockets_of_a_killed_backend_are_replaced_and_those_of_a_live_one_are_not() {
    let mut backend = Backend::start(&[]);
    let second = spawn(backend.dir.path(), &[]).wait_with_output().unwrap();
    assert_eq!(code(&second), 1);
    assert!(
        stderr(&second).contains("another process is listening"),
        "{}",
        stderr(&second)
    );
    assert_eq!(code(&backend.ask("status")), 0);

    backend.child.kill().unwrap();
    backend.wait();
    assert!(backend.control().exists() && backend.socket().exists());
    let output = backend.ask("status");
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("no backend is listening"),
        "{}",
        stderr(&output)
    );

    backend.child = spawn(backend.dir.path(), &[]);
    backend.wait_ready();
    assert_eq!(code(&backend.ask("status")), 0);
    let mode = backend.control().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn no_backend_is_exit_code_3_and_says_what_to_start() {
    for command in ["status", "stats", "link show", "link flap", "quit"] {
        let mut arguments: Vec<_> = command.split(' ').collect();
        arguments.extend(["--control", "/nonexistent/ctl"]);
        let output = ferronic(&arguments);
        assert_eq!(code(&output), 3, "{command}");
        let said = stderr(&output);
        assert!(
            said.contains("ferronic serve --control /nonexistent/ctl"),
            "{said}"
        );
    }
    // One that listens and never answers.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mute");
    let _mute = UnixListener::bind(&path).unwrap();
    let output = ferronic(&[
        "status",
        "--timeout",
        "1",
        "--control",
        path.to_str().unwrap(),
    ]);
    assert_eq!(code(&output), 3);
    assert!(
        stderr(&output).contains("did not answer"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn wrong_command_lines_are_exit_code_2_and_explained() {
    for (line, hint) in [
        ("", "Usage"),
        ("dance", "dance"),
        ("serve", "--socket-path"),
        ("serve --socket-path s --mtu 1", "68 to 65535"),
        ("--socket-path s --queues 99", "1 to 31"),
        ("--socket-path s --uplink pigeon", "tap:NAME"),
        ("--socket-path s --fd 7", "--fd"),
        ("--socket-path s --control s", "the same"),
        ("link sideways --control c", "sideways"),
        ("link up", "--control"),
        ("link flap --count 0 --control c", "--count"),
        (
            "qemu-args --socket-path s --attach device --mac 52:54:00:00:00:01",
            "serve --mac",
        ),
        ("man dance", "dance"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let output = ferronic(&words);
        assert_eq!(code(&output), 2, "{line}");
        assert!(
            stderr(&output).contains(hint),
            "{line}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn a_socket_that_cannot_be_made_is_exit_code_1_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for (path, hint) in [
        ("/nonexistent/sock", "does its directory exist"),
        (file.to_str().unwrap(), "left alone"),
    ] {
        let output = ferronic(&["--socket-path", path]);
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains(hint), "{}", stderr(&output));
    }
    // What was made before the failure is taken away again.
    let sock = dir.path().join("sock");
    let control = file.to_str().unwrap();
    let output = ferronic(&[
        "--socket-path",
        sock.to_str().unwrap(),
        "--control",
        control,
    ]);
    assert_eq!(code(&output), 1);
    assert!(!sock.exists());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn capabilities_are_printed_in_both_forms() {
    for line in [
        &["--print-capabilities"][..],
        &["serve", "--print-capabilities"],
        &[
            "--socket-path=/nonexistent/s",
            "--print-capabilities",
            "--whatever",
        ],
    ] {
        let output = ferronic(line);
        assert_eq!(code(&output), 0);
        let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(capabilities, serde_json::json!({"type": "net"}));
    }
}

#[test]
fn the_description_for_the_vhost_user_directory_fits_the_program() {
    let text = include_str!("../ferronic.json");
    let description: Value = serde_json::from_str(text).unwrap();
    assert_eq!(description["type"], "net");
    assert!(description["description"].is_string());
    assert!(Path::new(description["binary"].as_str().unwrap()).is_absolute());
}

#[test]
fn an_inherited_descriptor_must_be_a_socket() {
    for fd in ["999", "3"] {
        let output = ferronic(&["--fd", fd]);
        assert_eq!(code(&output), 1, "{fd}");
        assert!(
            stderr(&output).contains("Unix stream socket"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(code(&ferronic(&["--fd", "2"])), 2);
}

#[test]
fn an_inherited_socket_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
    // Without close-on-exec, which std sets: the child gets it under its number.
    let inherited: OwnedFd = rustix::io::dup(&listener).unwrap();
    let fd = inherited.as_raw_fd().to_string();
    let child = Command::new(env!("CARGO_BIN_EXE_ferronic"))
        .args(["serve", "--fd", &fd, "--control"])
        .arg(dir.path().join("ctl"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(inherited);
    let mut backend = Backend { child, dir };
    backend.wait_ready();
    backend.signal(Signal::TERM);
    assert_eq!(backend.wait().code(), Some(0));
}

#[test]
fn help_manual_and_completions() {
    let help = ferronic(&["--help"]);
    assert_eq!(code(&help), 0);
    for words in ["Exit codes", "qemu-args", "flap"] {
        assert!(stdout(&help).contains(words), "{words}");
    }
    assert!(stdout(&ferronic(&["man", "serve"])).starts_with(".ie"));
    assert!(stdout(&ferronic(&["completions", "bash"])).contains("_ferronic"));
    assert!(stdout(&ferronic(&["--version"])).starts_with("ferronic "));
}

#[test]
fn qemu_args_are_one_line_ready_to_paste() {
    let output = ferronic(&["qemu-args", "--socket-path", "/tmp/s", "--queues", "2"]);
    assert_eq!(code(&output), 0);
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1);
    assert!(
        text.contains("queues=2") && text.contains("mq=on,vectors=6"),
        "{text}"
    );
}
