// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hangs up when a thread ends, however it ends.
//!
//! The crate's thread shuts its socket down when it ends by an error, but not when it panics: the
//! daemon keeps a copy of the socket, so that our end would never learn of it, and the frontend
//! would wait for answers for ever. What a thread keeps in a thread-local variable is dropped in
//! both cases.

use std::cell::RefCell;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// Our end of the socket to a thread.
#[derive(Debug, Default)]
pub struct Lifeline(OnceLock<UnixStream>);

#[derive(Debug)]
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // Fails only when it is shut down already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

thread_local! {
    static HELD: RefCell<Option<HangUp>> = const { RefCell::new(None) };
}

impl Lifeline {
    /// Ties the line to `stream`; only the first call counts.
    pub fn tie(&self, stream: UnixStream) {
        let _ = self.0.set(stream);
    }

    /// From now on the calling thread holds the line: when it ends, the stream is shut down.
    pub fn hold(&self) {
        HELD.with_borrow_mut(|held| {
            if held.is_none() {
                *held = self.0.get().and_then(|s| s.try_clone().ok()).map(HangUp);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_thread_that_panics_hangs_up() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        // As the crate does: the thread's end stays open whatever becomes of the thread.
        let _kept = theirs;
        let line = Arc::new(Lifeline::default());
        line.tie(ours.try_clone().unwrap());
        let held = line.clone();
        let thread = thread::spawn(move || {
            held.hold();
            held.hold();
            panic!("as the test wants it");
        });
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        assert!(thread.join().is_err());
    }
}
