// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One client's conversation: bytes in, bytes out. Knows no socket.
//!
//! Requests are a stream of JSON values, not of lines: a client may send them without newlines,
//! several at once, or in pieces. Answers are a line each.

use serde_json::{Deserializer, Value, json};

use super::commands::{Arguments, CommandError, Commands, read, shorten, version};

/// Longest request, in octets. The longest that means anything has less than 200.
pub const MAX_REQUEST: usize = 64 << 10;

/// Most octets of answers and events that wait for a client to read them.
pub const MAX_OUTPUT: usize = 1 << 20;

/// What [`Session::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Took one request and queued the answer; there may be more.
    Handled,
    /// There is no whole request.
    NeedInput,
    /// The conversation is over; what is queued may still be sent.
    Ended,
}

/// One client's conversation.
#[derive(Debug)]
pub struct Session {
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of `output` has been sent.
    sent: usize,
    negotiated: bool,
    ended: bool,
    overflowed: bool,
}

struct Request {
    execute: String,
    arguments: Arguments,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A conversation with the greeting queued.
    pub fn new() -> Self {
        let mut session = Session {
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            negotiated: false,
            ended: false,
            overflowed: false,
        };
        session.queue(&json!({"QMP": {"version": version(), "capabilities": []}}));
        session
    }

    /// Takes what the client has sent. Call [`Session::step`] until it needs more.
    pub fn receive(&mut self, bytes: &[u8]) {
        if !self.ended {
            self.input.extend_from_slice(bytes);
        }
    }

    /// The client will send no more. A request that was cut off is told so.
    pub fn input_ended(&mut self) {
        if !self.ended && !self.input.trim_ascii().is_empty() {
            self.queue(&error("the input ended in the middle of a request"));
        }
        self.end();
    }

    /// Handles at most one request.
    pub fn step(&mut self, commands: &Commands) -> Step {
        if self.ended {
            return Step::Ended;
        }
        let blanks = self.input.len() - self.input.trim_ascii_start().len();
        self.input.drain(..blanks);

        let mut values = Deserializer::from_slice(&self.input).into_iter::<Value>();
        let next = values.next();
        let used = values.byte_offset();
        match next {
            None => Step::NeedInput,
            Some(Ok(_)) if used > MAX_REQUEST => self.refuse_size(),
            Some(Ok(value)) => {
                self.input.drain(..used);
                let answer = self.answer(value, commands);
                self.queue(&answer);
                Step::Handled
            }
            Some(Err(e)) if e.is_eof() => {
                if self.input.len() > MAX_REQUEST {
                    return self.refuse_size();
                }
                Step::NeedInput
            }
            Some(Err(e)) => {
                // The next request can begin anywhere now. Somebody who types goes on with the
                // next line, and a program waits for the answer before it sends more.
                let rest = self.input.iter().skip(used).position(|b| *b == b'\n');
                let skip = rest.map_or(self.input.len(), |at| used + at + 1);
                self.input.drain(..skip.min(self.input.len()));
                let e = shorten(&e.to_string());
                self.queue(&error(&format!("this is not JSON: {e}")));
                Step::Handled
            }
        }
    }

    /// Queues an event, if the client has finished negotiation.
    pub fn event(&mut self, event: &Value) {
        if self.negotiated && !self.ended {
            self.queue(event);
        }
    }

    /// What waits to be sent.
    pub fn pending(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// The first `count` octets of [`Session::pending`] have been sent.
    pub fn sent(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.output.len());
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        }
    }

    /// Whether the conversation is over but for what is pending.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether more would have waited than [`MAX_OUTPUT`]: the client does not read.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    fn refuse_size(&mut self) -> Step {
        self.queue(&error(&format!(
            "the request is longer than {MAX_REQUEST} octets; the connection ends"
        )));
        self.end();
        Step::Ended
    }

    fn end(&mut self) {
        self.ended = true;
        self.input = Vec::new();
    }

    fn answer(&mut self, value: Value, commands: &Commands) -> Value {
        let (id, request) = parse(value);
        let result = request.and_then(|request| self.execute(request, commands));
        let mut answer = match result {
            Ok(value) => json!({"return": value}),
            Err(e) => json!({"error": e.to_json()}),
        };
        if let (Some(id), Some(answer)) = (id, answer.as_object_mut()) {
            answer.insert("id".into(), id);
        }
        answer
    }

    fn execute(&mut self, request: Request, commands: &Commands) -> Result<Value, CommandError> {
        match (request.execute.as_str(), self.negotiated) {
            ("qmp_capabilities", false) => {
                let wanted: Capabilities = read(request.arguments)?;
                if let Some(unknown) = wanted.enable.first() {
                    return Err(CommandError::Generic(format!(
                        "capability '{}' is not offered",
                        shorten(unknown)
                    )));
                }
                self.negotiated = true;
                Ok(json!({}))
            }
            ("qmp_capabilities", true) => Err(CommandError::NotFound(
                "capabilities have been negotiated already".into(),
            )),
            (_, false) => Err(CommandError::NotFound(
                "send {\"execute\": \"qmp_capabilities\"} first".into(),
            )),
            (name, true) => commands.run(name, request.arguments),
        }
    }

    fn queue(&mut self, value: &Value) {
        if self.overflowed {
            return;
        }
        let line = value.to_string();
        if self.pending().len() + line.len() + 1 > MAX_OUTPUT {
            self.overflowed = true;
            return;
        }
        self.output.drain(..self.sent);
        self.sent = 0;
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Capabilities {
    #[serde(default)]
    enable: Vec<String>,
}

fn error(desc: &str) -> Value {
    json!({"error": CommandError::Generic(desc.into()).to_json()})
}

/// Takes a request apart. The id comes back even if the rest is wrong.
fn parse(value: Value) -> (Option<Value>, Result<Request, CommandError>) {
    let generic = |desc: String| Err(CommandError::Generic(desc));
    let Value::Object(mut members) = value else {
        return (None, generic("a request must be a JSON object".into()));
    };
    let id = members.remove("id");
    let execute = match members.remove("execute") {
        Some(Value::String(name)) => name,
        Some(_) => return (id, generic("'execute' must be a string".into())),
        None => return (id, generic("a request must have a member 'execute'".into())),
    };
    let arguments = match members.remove("arguments") {
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return (id, generic("'arguments' must be an object".into())),
        None => Arguments::new(),
    };
    if let Some(unknown) = members.keys().next() {
        let unknown = shorten(unknown);
        return (
            id,
            generic(format!(
                "a request has no member '{unknown}'; known are execute, arguments and id"
            )),
        );
    }
    (id, Ok(Request { execute, arguments }))
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
