// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket's server over real sockets, with clients that behave and clients that don't.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use ferronic::control::client::{Client, ClientError};
use ferronic::control::commands::Commands;
use ferronic::control::protocol::{MAX_OUTPUT, MAX_REQUEST};
use ferronic::control::replies::Stats;
use ferronic::control::server::{MAX_CLIENTS, Server};
use ferronic::control::stop::Stop;
use ferronic::nic::offload::Offloads;
use ferronic::nic::{FrontendInfo, Nic, NicConfig};
use ferronic::socket::{Access, bind};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a thread of its own; ends with the value.
struct Running {
    nic: Arc<Nic>,
    path: PathBuf,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let nic = Arc::new(Nic::new(NicConfig {
        mac: "52:54:00:12:34:56".parse().unwrap(),
        mtu: 1500,
        speed: 10_000,
        queue_pairs: 31,
        packed: true,
        rss: true,
        hash_report: true,
        offloads: Offloads::NONE,
        uplink: "loopback".into(),
    }));
    let stop = Stop::new().unwrap();
    let bound = bind(&path, Access::Owner).unwrap();
    let commands = Commands::new(Arc::clone(&nic), stop.clone(), false);
    let server = Server::new(bound, commands).unwrap();
    let (loop_stop, subscriber) = (stop.clone(), stop.subscriber());
    let thread = std::thread::spawn(move || {
        let mut event_loop = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
        event_loop.add_subscriber(Box::new(subscriber));
        event_loop.add_subscriber(Box::new(server));
        while !loop_stop.requested() {
            event_loop.run().unwrap();
        }
    });
    Running {
        nic,
        path,
        stop,
        thread: Some(thread),
        _dir: dir,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.request();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
            assert!(!self.path.exists());
        }
    }
}

/// A client that is no library of ours: it shows what is on the wire.
struct Raw {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Raw {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Raw { stream, lines }
    }

    fn negotiated(path: &Path) -> Self {
        let mut raw = Raw::connect(path);
        assert!(raw.next()["QMP"].is_object());
        assert_eq!(
            raw.ask(r#"{"execute":"qmp_capabilities"}"#),
            json!({"return": {}})
        );
        raw
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("'{line}': {e}"))
    }

    fn ask(&mut self, text: &str) -> Value {
        self.send(text);
        self.next()
    }

    /// Whether the server has closed the connection, after whatever it still sent.
    fn gets_closed(mut self) -> bool {
        let mut rest = Vec::new();
        match self.lines.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn answers(running: &Running) {
    let mut client = Client::connect(&running.path, PATIENCE).unwrap();
    let stats: Stats = client.query("query-stats").unwrap();
    assert_eq!(stats.queues.len(), 31);
}

#[test]
fn commands_work_and_events_reach_everyone() {
    let running = start();
    let mut silent = Raw::connect(&running.path);
    assert!(silent.next()["QMP"].is_object());
    let mut listener = Raw::negotiated(&running.path);
    let mut client = Client::connect(&running.path, PATIENCE).unwrap();
    client.execute("link-set", json!({"up": false})).unwrap();
    assert!(!running.nic.link_up());

    let event = listener.next();
    assert_eq!(event["event"], "LINK_CHANGED");
    assert_eq!(event["data"], json!({"up": false}));
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 0);
    assert!(event["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);

    let info = FrontendInfo {
        attachment: None,
        pid: Some(77),
        features: 0,
        rings_active: 0,
    };
    running.nic.set_frontend(Some(info));
    let event = listener.next();
    assert_eq!(event["event"], "FRONTEND_CONNECTED");
    assert_eq!(event["data"], json!({"pid": 77}));
    let answer = listener.ask(r#"{"execute":"query-frontend"}"#);
    assert_eq!(answer["return"]["connected"], true);
    running.nic.set_frontend(None);
    assert_eq!(listener.next()["event"], "FRONTEND_DISCONNECTED");
    running.nic.set_uplink(false);
    assert_eq!(listener.next()["event"], "UPLINK_CHANGED");

    // Who has not negotiated has heard nothing of all this.
    let answer = silent.ask(r#"{"execute":"qmp_capabilities"}"#);
    assert_eq!(answer, json!({"return": {}}));
}

#[test]
fn errors_of_the_backend_reach_the_caller() {
    let running = start();
    let mut client = Client::connect(&running.path, PATIENCE).unwrap();
    let error = client.execute("link-set", json!({"up": 1})).unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error}");
    // And the conversation goes on.
    client.execute("query-link", json!({})).unwrap();
}

#[test]
fn the_thirty_third_client_is_turned_away_and_a_place_comes_free_again() {
    let running = start();
    let mut clients: Vec<_> = (0..MAX_CLIENTS)
        .map(|_| Raw::negotiated(&running.path))
        .collect();
    let mut refused = Raw::connect(&running.path);
    assert_eq!(refused.next()["error"]["class"], "GenericError");
    assert!(refused.gets_closed());
    let error = Client::connect(&running.path, PATIENCE).unwrap_err();
    assert!(error.to_string().contains("clients"), "{error}");

    assert!(clients[7].ask(r#"{"execute":"query-link"}"#)["return"].is_object());
    drop(clients.pop());
    let deadline = Instant::now() + PATIENCE;
    while Client::connect(&running.path, PATIENCE).is_err() {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn too_long_a_request_ends_that_client_only() {
    let running = start();
    let mut client = Raw::negotiated(&running.path);
    client.send(&format!("{{\"execute\": \"{}", "x".repeat(MAX_REQUEST)));
    let error = client.next();
    assert!(
        error["error"]["desc"].as_str().unwrap().contains("65536"),
        "{error}"
    );
    assert!(client.gets_closed());
    answers(&running);
}

#[test]
fn half_closed_clients_get_their_answers() {
    let running = start();
    let mut client = Raw::connect(&running.path);
    client.send(r#"{"execute":"qmp_capabilities"}{"execute":"query-link","id":"last"}"#);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.next()["QMP"].is_object());
    assert!(client.next()["return"].is_object());
    assert_eq!(client.next()["id"], "last");
    assert!(client.gets_closed());
}

#[test]
fn commands_of_a_client_that_is_gone_already_are_carried_out() {
    let running = start();
    let mut client = Raw::connect(&running.path);
    client.send(r#"{"execute":"qmp_capabilities"}{"execute":"link-set","arguments":{"up":false}}"#);
    drop(client);
    let deadline = Instant::now() + PATIENCE;
    while running.nic.link_up() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_client_that_sends_much_and_reads_late_gets_every_answer() {
    let running = start();
    let mut client = Raw::negotiated(&running.path);
    let mut writer = client.stream.try_clone().unwrap();
    // Far more than MAX_OUTPUT: it is slowed down, and not thrown out.
    const REQUESTS: usize = 1000;
    let sender = std::thread::spawn(move || {
        for id in 0..REQUESTS {
            let request = json!({"execute": "query-stats", "id": id}).to_string();
            writer.write_all(request.as_bytes()).unwrap();
        }
    });
    answers(&running);
    let mut total = 0;
    for id in 0..REQUESTS {
        let answer = client.next();
        assert_eq!(answer["id"], id);
        total += answer.to_string().len();
    }
    assert!(total > MAX_OUTPUT);
    sender.join().unwrap();
}

#[test]
fn a_client_that_never_reads_is_dropped_and_holds_nobody_up() {
    let running = start();
    let sleeper = Raw::negotiated(&running.path);
    let mut client = Raw::negotiated(&running.path);
    // One event is some 100 octets; the socket's own buffer comes on top of MAX_OUTPUT.
    let mut up = true;
    for _ in 0..40_000 {
        up = !up;
        let request = json!({"execute": "link-set", "arguments": {"up": up}}).to_string();
        client.send(&request);
        let mut heard = (false, false);
        while heard != (true, true) {
            let message = client.next();
            heard.0 |= message.get("return").is_some();
            heard.1 |= message.get("event").is_some();
        }
    }
    assert!(sleeper.gets_closed());
}

#[test]
fn garbage_from_one_client_does_not_reach_another() {
    let running = start();
    let mut noisy = Raw::negotiated(&running.path);
    for i in 0..100u8 {
        noisy.send(&format!("}}{}{{\n", char::from(i)));
    }
    answers(&running);
    // Sent without being read: closing then resets the connection.
    drop(noisy);
    answers(&running);
}

#[test]
fn quit_answers_and_ends_the_loop() {
    let running = start();
    let mut client = Client::connect(&running.path, PATIENCE).unwrap();
    client.execute("quit", json!({})).unwrap();
    client.wait_closed().unwrap();
    assert!(!running.path.exists());
}

#[test]
fn a_server_that_says_nothing_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = Client::connect(&path, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    // Full backlog: even connecting must not hang.
    let mut waiting = Vec::new();
    loop {
        let probe = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        match rustix::net::connect(&probe, &address) {
            Ok(()) => waiting.push(probe),
            Err(e) => break assert_eq!(e, rustix::io::Errno::AGAIN),
        }
    }
    let error = Client::connect(&path, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    drop(listener);
}

#[test]
fn a_server_that_speaks_another_language_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 mail ready\n").unwrap();
    });
    let error = Client::connect(&path, PATIENCE).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    thread.join().unwrap();
}

/// A client made for QEMU, typed after QEMU's own schema.
#[test]
fn a_stock_qmp_client_works() {
    let running = start();
    let stream = UnixStream::connect(&running.path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut qmp = qapi::Qmp::from_stream(&stream);
    let greeting = qmp.handshake().unwrap();
    assert!(greeting.version.package.starts_with("ferronic"));
    let status = qmp.execute(&qapi::qmp::query_status {}).unwrap();
    assert!(status.running);
    let commands = qmp.execute(&qapi::qmp::query_commands {}).unwrap();
    assert!(commands.iter().any(|c| c.name == "link-set"));
    qmp.execute(&qapi::qmp::quit {}).unwrap();
}
