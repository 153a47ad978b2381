// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `ferronic serve --uplink switch` with frontends at its sockets, steered by the subcommands.

mod frontend_support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use frontend_support::client::{Client, FEATURES, NETDEV};
use frontend_support::guest::{Driver, RING_SIZE};
use frontend_support::{PATIENCE, eventually};
use serde_json::{Value, json};

/// A switch, killed in the end if it has not ended by then.
struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    /// A switch with ports at these names in a directory of its own.
    fn start(sockets: &[&str], more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // As most shells start a program: with few descriptors, and the right to take more.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -S -n 1024 && exec \"$@\"", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_ferronic"));
        command.args(["serve", "--uplink", "switch", "--log", "warn", "--control"]);
        command.arg(dir.path().join("ctl")).args(more);
        for socket in sockets {
            command.arg("--socket-path").arg(dir.path().join(socket));
        }
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let process = Process { child, dir };
        eventually("it listens", || {
            UnixStream::connect(process.path("ctl")).is_ok()
                && sockets.iter().all(|socket| process.path(socket).exists())
        });
        process
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, command: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ferronic"))
            .args(command.split(' '))
            .arg("--control")
            .arg(self.path("ctl"))
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// What a subcommand prints that succeeds.
    fn ask(&self, command: &str) -> String {
        let output = self.run(command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn query(&self, command: &str) -> Value {
        serde_json::from_str(&self.ask(&format!("{command} --json"))).unwrap()
    }

    /// What one says that fails.
    fn refuses(&self, command: &str) -> String {
        let output = self.run(command);
        assert_eq!(output.status.code(), Some(1), "{command}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn ends(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        let left: Vec<_> = self.dir.path().read_dir().unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A guest that is plugged in.
struct Guest {
    client: Client,
    driver: Driver,
    mac: [u8; 6],
}

impl Guest {
    fn plug_in(path: &Path, number: u8) -> Self {
        let mut client = Client::connect(path);
        client.handshake(NETDEV);
        let driver = Driver::new(2, 1);
        client.start_netdev(&driver, FEATURES);
        Guest {
            client,
            driver,
            mac: [2, 0, 0, 0, 0, number],
        }
    }

    fn frame(&self, to: [u8; 6], n: usize) -> Vec<u8> {
        let mut frame = [&to[..], &self.mac, &[0x88, 0xb5]].concat();
        frame.extend((0..60 + n % 1400).map(|i| (i * 7 + n) as u8));
        frame
    }

    fn send(&mut self, to: [u8; 6], n: usize) -> Vec<u8> {
        let frame = self.frame(to, n);
        self.driver.send(0, &frame);
        self.driver.rings[1].wait();
        frame
    }
}

/// Packets pass both ways, more than the rings hold at a time.
fn talk(one: &mut Guest, two: &mut Guest) {
    for n in 0..2 * usize::from(RING_SIZE) {
        let sent = one.send(two.mac, n);
        assert_eq!(two.driver.receive(0), sent);
        let sent = two.send(one.mac, n + 1);
        assert_eq!(one.driver.receive(0), sent);
    }
}

#[test]
fn guests_talk_and_ports_come_and_go_beside_them() {
    let mut switch = Process::start(&["a", "b"], &[]);
    let mut one = Guest::plug_in(&switch.path("a"), 1);
    let mut two = Guest::plug_in(&switch.path("b"), 2);
    talk(&mut one, &mut two);
    // The path is where the one who asks is.
    assert_eq!(
        switch.ask("port add --socket-path c --name third"),
        "port third added\n"
    );
    let mut three = Guest::plug_in(&switch.path("c"), 3);
    talk(&mut three, &mut one);
    talk(&mut one, &mut two);

    let addresses = switch.query("port show --addresses");
    let ports: Vec<_> = addresses["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["port"].as_str().unwrap(), a["mac"].as_str().unwrap()))
        .collect();
    let expected = [
        ("p0", "02:00:00:00:00:01"),
        ("p1", "02:00:00:00:00:02"),
        ("third", "02:00:00:00:00:03"),
    ];
    assert_eq!(ports, expected);
    let table = switch.ask("port show");
    assert!(
        table.lines().nth(3).unwrap().starts_with("third  up"),
        "{table}"
    );
    assert!(switch.ask("status").contains(&table));
    assert!(switch.ask("stats").contains("third/rx0"));

    switch.ask("port remove third");
    assert!(three.client.is_closed());
    assert!(!switch.path("c").exists());
    talk(&mut one, &mut two);
    // The same again at once, and again.
    for _ in 0..3 {
        switch.ask("port add --socket-path c --name third --vlan 7");
        let ports = switch.query("port show");
        assert_eq!(ports["ports"][2]["vlans"], "vlan 7");
        switch.ask("port remove third");
    }
    switch.ask("quit");
    switch.ends();
}

#[test]
fn each_port_has_a_link_of_its_own() {
    let switch = Process::start(&["a", "b", "c"], &[]);
    let mut one = Guest::plug_in(&switch.path("a"), 1);
    let mut two = Guest::plug_in(&switch.path("b"), 2);
    let mut three = Guest::plug_in(&switch.path("c"), 3);
    talk(&mut one, &mut two);
    switch.ask("link down --port p2");
    // As in the netdev attachment a link goes down.
    assert!(three.client.is_closed());
    talk(&mut one, &mut two);
    assert!(switch.ask("link show --port p2").starts_with("link down"));
    assert!(switch.ask("link show --port p1").starts_with("link up"));
    switch.ask("link up --port p2");
    // The port listens a moment after the answer.
    eventually("the path is back", || switch.path("c").exists());
    let mut three = Guest::plug_in(&switch.path("c"), 3);
    talk(&mut one, &mut three);
}

#[test]
fn what_cannot_be_is_explained() {
    let switch = Process::start(&["a"], &[]);
    for (command, hint) in [
        ("link down", "name a port; the ports are p0"),
        ("link down --port x", "no port 'x'"),
        ("stats --port x", "no port 'x'"),
        ("port remove x", "the ports are p0"),
        ("port remove uplink", "stays"),
        ("port add --socket-path a", "in use"),
        ("port add --socket-path b --name p0", "already"),
        ("port add --socket-path b --name a/b", "letters"),
    ] {
        let error = switch.refuses(command);
        assert!(error.contains(hint), "{command}: {error}");
    }
    assert!(!switch.path("b").exists());
    let usage = switch.run("port add --socket-path b --vlan 4095");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn requests_sent_together_find_what_those_before_have_done() {
    let switch = Process::start(&[], &[]);
    let path = switch.path("s");
    let stream = UnixStream::connect(switch.path("ctl")).unwrap();
    let add = json!({"execute": "port-add", "arguments": {"socket-path": path, "name": "a"}});
    let remove = json!({"execute": "port-remove", "arguments": {"name": "a"}});
    let mut all = json!({"execute": "qmp_capabilities"}).to_string();
    for _ in 0..20 {
        all += &format!("{add}{remove}");
    }
    (&stream).write_all(all.as_bytes()).unwrap();
    let mut returned = 0;
    let mut events = Vec::new();
    for line in BufReader::new(&stream).lines() {
        let answer: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
        returned += usize::from(answer.get("return").is_some());
        if let Some(event) = answer["event"].as_str() {
            assert_eq!(answer["data"]["port"], "a");
            events.push(event.to_owned());
        }
        if returned == 41 && events.len() == 40 {
            break;
        }
    }
    assert!(
        events
            .chunks(2)
            .all(|pair| pair == ["PORT_ADDED", "PORT_REMOVED"])
    );
    assert!(!path.exists());
}

#[test]
fn sixty_four_ports_and_no_more() {
    let mut switch = Process::start(&[], &[]);
    for number in 0..64 {
        switch.ask(&format!("port add --socket-path s{number}"));
    }
    let error = switch.refuses("port add --socket-path s64");
    assert!(error.contains("64 ports"), "{error}");
    let mut guests: Vec<_> = (0..64)
        .map(|number| Guest::plug_in(&switch.path(&format!("s{number}")), number))
        .collect();
    let descriptors = format!("/proc/{}/fd", switch.child.id());
    let descriptors = std::fs::read_dir(descriptors).unwrap().count();
    assert!(
        descriptors > 1024,
        "more than a process may usually open: {descriptors}"
    );
    // Each tells where it is, to itself; then all talk in a ring.
    for guest in &mut guests {
        guest.send(guest.mac, 1);
    }
    for number in 0..64 {
        let to = guests[(number + 1) % 64].mac;
        let sent = guests[number].send(to, number);
        assert_eq!(guests[(number + 1) % 64].driver.receive(0), sent);
    }
    let ports = switch.query("port show");
    for port in ports["ports"].as_array().unwrap() {
        assert_eq!(
            (&port["received"], &port["drops"]),
            (&json!(1), &json!(1)),
            "{port}"
        );
    }
    switch.ask("quit");
    switch.ends();
}
