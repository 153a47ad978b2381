// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The cache directory and the artefacts in it.
//!
//! An artefact is a directory `NAME-<hash of what goes into it>`. It is built as
//! `NAME-<hash>.part` under a file lock and renamed when it is whole, so neither
//! an interrupted build nor a second lab at work ever shows half of one. What a
//! directory of that name holds never changes afterwards.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{FdFlags, fcntl_setfd};
use sha2::{Digest, Sha256};

use crate::progress::{Step, say};

/// The environment variable that names the cache directory.
pub const CACHE_ENV: &str = "FERRONIC_CACHE";
/// The file that tells whether guests boot on KVM here.
pub const KVM_WORKS: &str = "kvm-works";
/// The directory of logs.
const LOGS: &str = "logs";
/// How many directories of logs are kept.
const KEEP_LOGS: usize = 10;
/// An artefact that nobody has used for so long goes when another of its name is made.
const EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A directory for the logs of one run. Others do not remove it while the run lasts.
#[derive(Debug)]
pub struct Logs {
    path: PathBuf,
    /// The directory itself, locked.
    _lock: File,
}

impl Logs {
    fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = Self::lock(&path).with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Logs { path, _lock: lock })
    }

    fn lock(path: &Path) -> io::Result<File> {
        let directory = File::open(path)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
        Ok(directory)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What an artefact is called and what goes into it.
#[derive(Debug)]
pub struct Key {
    name: String,
    hash: Sha256,
}

impl Key {
    /// A key for artefacts called `name`.
    pub fn new(name: &str) -> Self {
        Key {
            name: name.to_owned(),
            hash: Sha256::new(),
        }
    }

    /// Adds an input; its length goes in too, so that inputs cannot run into each other.
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.hash.update((input.len() as u64).to_le_bytes());
        self.hash.update(input);
        self
    }

    /// Adds another artefact as an input: by name, so that the cache directory can be moved.
    pub fn with_artefact(self, cache: &Cache, path: &Path) -> Self {
        let name = path.strip_prefix(cache.root()).unwrap_or(path);
        self.with(name.as_os_str().as_encoded_bytes())
    }

    /// `NAME-<12 hex digits>`.
    fn dir_name(&self) -> String {
        let digest = self.hash.clone().finalize();
        let hex = base16ct::lower::encode_string(&digest);
        format!("{}-{}", self.name, hex.get(..12).unwrap_or(&hex))
    }
}

/// What to do with what an interrupted build left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// Start over.
    Discard,
    /// Go on from there: the builder copes (`make`).
    Resume,
}

impl Cache {
    /// Finds the cache directory and creates it.
    pub fn open() -> Result<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let root = set(CACHE_ENV)
            .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("ferronic")))
            .or_else(|| set("HOME").map(|d| d.join(".cache/ferronic")))
            .with_context(|| format!("no place for the cache: set {CACHE_ENV} or HOME"))?;
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "cannot create the cache directory {} (set {CACHE_ENV} to name another)",
                root.display()
            )
        })?;
        let root = root.canonicalize()?;
        // The tools see the host's file system except for these, which are theirs.
        if ["/usr", "/etc", "/boot"]
            .iter()
            .any(|top| root.starts_with(top))
        {
            bail!(
                "the cache cannot be in {}: set {CACHE_ENV} to a directory outside /usr, /etc and /boot",
                root.display()
            );
        }
        Ok(Cache { root })
    }

    /// The cache directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A new directory for the logs of one run; old ones are removed.
    pub fn new_log_dir(&self, verb: &str) -> Result<Logs> {
        let logs = self.root.join(LOGS);
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        let mut old: Vec<_> = fs::read_dir(&logs)?
            .filter_map(|e| e.ok().map(|e| e.path()))
            .collect();
        old.sort();
        for dir in old.iter().rev().skip(KEEP_LOGS - 1) {
            // Another lab may be writing to it, or be removing it too.
            if Logs::lock(dir).is_ok() {
                let _ = fs::remove_dir_all(dir);
            }
        }
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Logs::create(logs.join(format!("{seconds}-{verb}-{}", std::process::id())))
    }

    /// The artefact's directory, if it has been made.
    pub fn find(&self, key: &Key) -> Option<PathBuf> {
        let name = key.dir_name();
        let whole = self.root.join(&name);
        whole.is_dir().then(|| {
            self.mark_used(&name);
            whole
        })
    }

    /// Returns the artefact's directory, made by `build` in a `.part` directory if it is not there.
    pub fn artefact(
        &self,
        key: Key,
        leftover: Leftover,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let kind = format!("{}-", key.name);
        if let Some(whole) = self.find(&key) {
            return Ok(whole);
        }
        let name = key.dir_name();
        let whole = self.root.join(&name);
        let lock = self.lock(&name)?;
        if whole.is_dir() {
            return Ok(whole);
        }
        // What the build starts holds the lock too. So, if this process is killed, a build that
        // goes on without it is waited for, and not joined in the same directory.
        fcntl_setfd(&lock, FdFlags::empty()).context("cannot share the lock")?;
        self.expire(&kind);
        let part = self.root.join(format!("{name}.part"));
        if leftover == Leftover::Discard && part.exists() {
            remove_tree(&part)?;
        }
        fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        build(&part)?;
        fs::rename(&part, &whole)
            .with_context(|| format!("cannot rename {} to {}", part.display(), whole.display()))?;
        Ok(whole)
    }

    /// Notes, in the lock file's time, that an artefact is in use.
    fn mark_used(&self, name: &str) {
        let lock = File::options()
            .create(true)
            .append(true)
            .open(self.root.join(format!("{name}.lock")));
        // At worst the artefact is made again some day.
        let _ = lock.and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Removes artefacts of a kind that have not been used for long.
    fn expire(&self, kind: &str) {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return;
        };
        for entry in entries.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file
                .strip_suffix(".lock")
                .filter(|name| name.starts_with(kind))
            else {
                continue;
            };
            let modified = entry.metadata().and_then(|meta| meta.modified());
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > EXPIRY)) {
                say(format!("removing {name}, which has not been used for long"));
                // What cannot be removed now is tried again another time.
                for path in [self.root.join(name), self.root.join(format!("{name}.part"))] {
                    let _ = remove_tree(&path);
                }
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Waits for the lock called `name`; it is released when the file is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        let step = Step::start(format!("waiting for another lab that makes {name}"));
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        step.done();
        Ok(file)
    }

    /// Fails when fewer than `mib` MiB are free.
    pub fn need_space(&self, mib: u64, what: &str) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.root).with_context(|| {
            format!(
                "cannot ask how much space is free in {}",
                self.root.display()
            )
        })?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
        if free < mib {
            bail!(
                "{what} needs {mib} MiB in {}, but only {free} MiB are free: make room, \
                 or set {CACHE_ENV} to a directory on a larger disk",
                self.root.display()
            );
        }
        Ok(())
    }

    /// Removes all that the lab has made, and the directory if nothing else is in it: it may have
    /// been named by mistake.
    pub fn clean(&self) -> Result<()> {
        let step = Step::start(format!(
            "removing what the lab has made in {}",
            self.root.display()
        ));
        let logs = self.root.join(LOGS);
        remove_matching(&logs, is_log)?;
        remove_matching(&self.root, is_artefact)?;
        // Fails when something is left, which then is not the lab's.
        let _ = fs::remove_dir(&logs);
        let gone = fs::remove_dir(&self.root).is_ok();
        step.done();
        let root = self.root.display();
        say(if gone {
            format!("{root} is gone")
        } else {
            format!("{root} holds other things and stays")
        });
        Ok(())
    }
}

/// Whether the lab gives such names: `NAME-<12 hex digits>`, `.part` and `.lock` of it, and [`KVM_WORKS`].
fn is_artefact(name: &str) -> bool {
    let stem = [".lock", ".part"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    let hash = stem.rsplit_once('-').map_or("", |(_, hash)| hash);
    name == KVM_WORKS || (hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether the lab gives such names to directories of logs: `SECONDS-VERB-PID`.
fn is_log(name: &str) -> bool {
    let digits = |part: Option<&str>| part.is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let mut parts = name.splitn(2, '-');
    digits(parts.next()) && digits(parts.next().and_then(|rest| rest.rsplit('-').next()))
}

fn remove_matching(dir: &Path, matches: fn(&str) -> bool) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if !matches(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path) -> Cache {
        Cache {
            root: dir.to_owned(),
        }
    }

    #[test]
    fn artefact_is_built_once_and_shown_only_when_whole() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let key = || Key::new("thing").with("a");
        let failed = cache.artefact(key(), Leftover::Discard, |part| {
            fs::write(part.join("half"), "")?;
            bail!("the power went off")
        });
        assert!(failed.is_err());
        let made = cache
            .artefact(key(), Leftover::Discard, |part| {
                assert!(!part.join("half").exists());
                Ok(fs::write(part.join("whole"), "")?)
            })
            .unwrap();
        assert!(made.join("whole").exists());
        let again = cache
            .artefact(key(), Leftover::Discard, |_| bail!("built twice"))
            .unwrap();
        assert_eq!(made, again);
    }

    #[test]
    fn interrupted_build_can_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let build = |part: &Path| {
            let file = part.join("half");
            if !file.exists() {
                fs::write(file, "")?;
                bail!("the power went off");
            }
            Ok(())
        };
        assert!(
            cache
                .artefact(Key::new("thing"), Leftover::Resume, build)
                .is_err()
        );
        assert!(
            cache
                .artefact(Key::new("thing"), Leftover::Resume, build)
                .is_ok()
        );
    }

    #[test]
    fn artefacts_out_of_use_make_room_for_their_successors() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let make = |input: &str| {
            cache.artefact(Key::new("thing").with(input), Leftover::Discard, |_| Ok(()))
        };
        let (old, used) = (make("old").unwrap(), make("used").unwrap());
        let long_ago = SystemTime::now() - 2 * EXPIRY;
        for path in [&old, &used] {
            let lock = File::options()
                .append(true)
                .open(path.with_extension("lock"))
                .unwrap();
            lock.set_modified(long_ago).unwrap();
        }
        make("used").unwrap();
        make("new").unwrap();
        assert!(!old.exists());
        assert!(used.exists());
    }

    #[test]
    fn logs_of_a_run_stay_while_it_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let of_this_run = cache.new_log_dir("test").unwrap();
        let logs = dir.path().join(LOGS);
        // As if many others had come and gone since.
        let others = (0..2 * KEEP_LOGS).map(|n| logs.join(format!("99999999999{n:02}-test-1")));
        others.for_each(|path| fs::create_dir(path).unwrap());
        cache.new_log_dir("bench").unwrap();
        assert!(of_this_run.path().is_dir());
        assert_eq!(fs::read_dir(&logs).unwrap().count(), KEEP_LOGS + 1);
    }

    #[test]
    fn clean_removes_what_the_lab_has_made_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("cache");
        fs::create_dir(&root).unwrap();
        let cache = cache(&root);
        let make = |cache: &Cache| {
            cache
                .artefact(Key::new("thing"), Leftover::Discard, |_| Ok(()))
                .unwrap();
            fs::write(root.join(KVM_WORKS), "").unwrap();
            cache.new_log_dir("test").unwrap();
        };
        make(&cache);
        for foreign in ["thesis", "logs/2024-thesis", "my-photographs0", "a-b.lock"] {
            fs::create_dir_all(root.join(foreign)).unwrap();
        }
        cache.clean().unwrap();
        let mut left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["a-b.lock", "logs", "my-photographs0", "thesis"]);
        assert!(root.join("logs/2024-thesis").exists());

        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        make(&cache);
        cache.clean().unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn keys_tell_inputs_apart() {
        let names = [
            Key::new("a").dir_name(),
            Key::new("a").with("").dir_name(),
            Key::new("a").with("bc").dir_name(),
            Key::new("a").with("b").with("c").dir_name(),
        ];
        let set: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(set.len(), names.len());
        assert_eq!(
            Key::new("a").with("b").dir_name(),
            Key::new("a").with("b").dir_name()
        );
    }
}
