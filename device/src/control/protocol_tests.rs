// SPDX-License-Identifier: Apache-2.0 OR MIT
use proptest::prelude::*;

use super::*;
use crate::control::stop::Stop;
use crate::control::test_support::nic;

struct Talk {
    session: Session,
    commands: Commands,
}

impl Talk {
    /// A conversation before its negotiation, with the greeting read.
    fn new() -> Self {
        let commands = Commands::new(nic(2), Stop::new().unwrap(), false);
        let mut session = Session::new();
        session.sent(session.pending().len());
        Talk { session, commands }
    }

    fn negotiated() -> Self {
        let mut talk = Talk::new();
        let answers = talk.say(br#"{"execute":"qmp_capabilities"}"#);
        assert_eq!(answers, [json!({"return": {}})]);
        talk
    }

    /// Sends, and returns what comes back.
    fn say(&mut self, bytes: &[u8]) -> Vec<Value> {
        self.session.receive(bytes);
        while self.session.step(&self.commands) == Step::Handled {}
        self.take()
    }

    fn take(&mut self) -> Vec<Value> {
        let text = String::from_utf8(self.session.pending().to_vec()).unwrap();
        self.session.sent(text.len());
        let values = text.lines().map(|line| serde_json::from_str(line).unwrap());
        values.collect()
    }
}

fn class(answer: &Value) -> &str {
    answer
        .pointer("/error/class")
        .and_then(Value::as_str)
        .unwrap_or("none")
}

#[test]
fn greeting_is_qmps() {
    let session = Session::new();
    let greeting: Value = serde_json::from_slice(session.pending()).unwrap();
    assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64());
    assert!(greeting["QMP"]["version"]["package"].is_string());
    assert_eq!(greeting["QMP"]["capabilities"], json!([]));
}

#[test]
fn nothing_is_done_before_negotiation() {
    let mut talk = Talk::new();
    let answers = talk.say(br#"{"execute":"link-set","arguments":{"up":false},"id":7}"#);
    assert_eq!(class(&answers[0]), "CommandNotFound");
    assert_eq!(answers[0]["id"], 7);
    let answers = talk.say(br#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#);
    assert_eq!(class(&answers[0]), "GenericError");
    let answers = talk.say(br#"{"execute":"qmp_capabilities","arguments":{"enable":[]}}"#);
    assert_eq!(answers, [json!({"return": {}})]);
    let answers = talk.say(br#"{"execute":"qmp_capabilities"}"#);
    assert_eq!(class(&answers[0]), "CommandNotFound");
}

#[test]
fn ids_of_any_kind_come_back() {
    let mut talk = Talk::negotiated();
    for id in [
        json!(1),
        json!("x"),
        json!(null),
        json!([1, {"a": 2.5}]),
        json!({}),
    ] {
        let request = json!({"execute": "query-link", "id": id}).to_string();
        assert_eq!(talk.say(request.as_bytes())[0]["id"], id);
        let request = json!({"execute": 5, "id": id}).to_string();
        let answer = &talk.say(request.as_bytes())[0];
        assert_eq!((&answer["id"], class(answer)), (&id, "GenericError"));
    }
    assert!(
        talk.say(br#"{"execute":"query-link"}"#)[0]
            .get("id")
            .is_none()
    );
}

#[test]
fn requests_may_come_in_pieces_and_in_heaps() {
    let mut talk = Talk::negotiated();
    let heap = br#" {"execute":"query-link","id":1}{"execute":"query-link","id":2}
        {"execute": "query-link", "id": 3} "#;
    let ids: Vec<_> = talk.say(heap).iter().map(|a| a["id"].clone()).collect();
    assert_eq!(ids, [1, 2, 3]);
    let mut answers = Vec::new();
    for byte in heap {
        answers.extend(talk.say(&[*byte]));
    }
    assert_eq!(answers.len(), 3);
}

#[test]
fn what_is_no_request_is_said_and_the_conversation_goes_on() {
    let mut talk = Talk::negotiated();
    for bad in [
        r#"[]"#,
        r#""text""#,
        r#"{}"#,
        r#"{"execute":{}}"#,
        r#"{"execute":"query-link","arguments":[]}"#,
        r#"{"execute":"query-link","argument":{}}"#,
        r#"{"exec-oob":"query-link"}"#,
        r#"{"execute":"query-link","arguments":{"up":true}}"#,
        r#"{"execute":"link-set"}"#,
        r#"{"execute":"link-set","arguments":{"up":"yes"}}"#,
        r#"{"execute":"link-set","arguments":{"up":true,"down":true}}"#,
    ] {
        let answers = talk.say(bad.as_bytes());
        assert_eq!(answers.len(), 1, "{bad}");
        assert_eq!(class(&answers[0]), "GenericError", "{bad}");
    }
    let answers = talk.say(br#"{"execute":"dance"}"#);
    assert_eq!(class(&answers[0]), "CommandNotFound");
    assert!(talk.say(br#"{"execute":"query-link"}"#)[0]["return"]["up"] == true);
}

#[test]
fn after_broken_json_the_next_line_is_heard() {
    let mut talk = Talk::negotiated();
    let answers = talk.say(b"{\"execute\": oops} {}\n{\"execute\":\"query-link\"}\n");
    assert_eq!(answers.len(), 2);
    assert_eq!(class(&answers[0]), "GenericError");
    assert_eq!(answers[1]["return"]["up"], true);
    // Without a newline all that came is given up, but nothing that comes later.
    assert_eq!(class(&talk.say(b"}}}}{")[0]), "GenericError");
    assert!(talk.say(br#"{"execute":"query-link"}"#)[0]["return"].is_object());
    // Not UTF-8, and nested too deep.
    assert_eq!(
        class(&talk.say(b"{\"execute\":\"\xff\xfe\"}\n")[0]),
        "GenericError"
    );
    assert_eq!(class(&talk.say(&[b'['; 4096])[0]), "GenericError");
    assert!(talk.say(br#"{"execute":"query-link"}"#)[0]["return"].is_object());
}

#[test]
fn too_long_a_request_ends_the_conversation() {
    for ending in ["", "\"}"] {
        let mut talk = Talk::negotiated();
        let request = format!("{{\"execute\":\"{}{ending}", "x".repeat(MAX_REQUEST));
        let answers = talk.say(request.as_bytes());
        assert_eq!(answers.len(), 1);
        assert_eq!(class(&answers[0]), "GenericError");
        assert!(talk.session.ended());
        assert_eq!(talk.say(br#"{"execute":"query-link"}"#), [] as [Value; 0]);
    }
    // Blanks are no request, however many.
    let mut talk = Talk::negotiated();
    assert!(talk.say(&vec![b' '; 2 * MAX_REQUEST]).is_empty());
    assert!(!talk.session.ended());
}

#[test]
fn a_client_that_does_not_read_overflows_and_keeps_no_more() {
    let mut talk = Talk::negotiated();
    while !talk.session.overflowed() {
        talk.session.receive(br#"{"execute":"query-stats"}"#);
        talk.session.step(&talk.commands);
        assert!(talk.session.pending().len() <= MAX_OUTPUT);
    }
}

#[test]
fn events_come_only_after_negotiation() {
    let event = json!({"event": "LINK_CHANGED"});
    let mut talk = Talk::new();
    talk.session.event(&event);
    assert!(talk.take().is_empty());
    let mut talk = Talk::negotiated();
    talk.session.event(&event);
    assert_eq!(talk.take(), [event]);
}

#[test]
fn a_cut_off_request_is_told() {
    let mut talk = Talk::negotiated();
    talk.say(br#"{"execute":"#);
    talk.session.input_ended();
    assert_eq!(class(&talk.take()[0]), "GenericError");
    assert_eq!(talk.session.step(&talk.commands), Step::Ended);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,7}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_never_stick(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16),
    ) {
        let mut talk = Talk::negotiated();
        for chunk in chunks {
            talk.say(&chunk);
        }
    }

    /// Bytes that look like JSON get further than random ones.
    #[test]
    fn json_like_bytes_never_panic(text in r#"[\[\]{}",:a-z0-9 \\.eu+\-\n]{0,200}"#) {
        let mut talk = Talk::negotiated();
        talk.say(text.as_bytes());
        talk.session.input_ended();
        talk.take();
    }

    /// Each request gets one answer with its id, however wrong it is and however it is cut.
    #[test]
    fn one_answer_to_each_request(
        requests in prop::collection::vec((any_json(), any_json(), any_json()), 1..8),
        names in prop::collection::vec(
            prop_oneof!["link-set", "query-stats", "query-status", "[a-z-]{0,9}"], 8),
        size in 1usize..50,
    ) {
        let mut talk = Talk::negotiated();
        let mut stream = Vec::new();
        for ((arguments, id, extra), name) in requests.iter().zip(&names) {
            let mut request = json!({"execute": name, "id": id, "arguments": arguments});
            if extra.is_object() {
                request["extra"] = extra.clone();
            }
            stream.extend(request.to_string().into_bytes());
        }
        let answers: Vec<_> = stream.chunks(size).flat_map(|chunk| talk.say(chunk)).collect();
        prop_assert_eq!(answers.len(), requests.len());
        for (answer, (_, id, _)) in answers.iter().zip(&requests) {
            prop_assert_eq!(answer["id"].to_string(), id.to_string());
            prop_assert!(answer.get("return").is_some() != answer.get("error").is_some());
        }
    }
}
