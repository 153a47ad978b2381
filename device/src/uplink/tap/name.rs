// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

/// The most octets that Linux takes (`IFNAMSIZ`, less the closing zero).
const MAX_LEN: usize = libc::IFNAMSIZ - 1;

/// The name of an interface, as Linux takes it.
///
/// # Invariants
/// 1 to 15 octets, none of them zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no name of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadInterfaceName(String);

impl fmt::Display for BadInterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInterfaceName {}

impl FromStr for InterfaceName {
    type Err = BadInterfaceName;

    fn from_str(text: &str) -> Result<Self, BadInterfaceName> {
        let bad = |why: String| Err(BadInterfaceName(why));
        if text.is_empty() {
            return bad(
                "the interface's name is missing; write tap:NAME, for example tap:fer0".into(),
            );
        }
        if text.len() > MAX_LEN {
            return bad(format!(
                "'{text}' is {} octets long; an interface's name has at most {MAX_LEN}",
                text.len()
            ));
        }
        if text == "." || text == ".." {
            return bad(format!("Linux takes no interface named '{text}'"));
        }
        // Linux itself refuses '/', ':' and white space, and makes up a number for '%d'.
        if let Some(c) = text
            .chars()
            .find(|&c| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
        {
            return bad(format!(
                "'{}' cannot name an interface: it has {c:?} in it",
                text.escape_debug()
            ));
        }
        Ok(InterfaceName(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_linux_takes() {
        for good in ["fer0", "a", "fifteen-octets-", "tap.100", "vnet0@x"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_linux_refuses_or_changes() {
        for bad in [
            "",
            "sixteen-octets--",
            "a/b",
            "a b",
            "tap%d",
            "..",
            ".",
            "a:1",
            "a\0b",
            "a\n",
        ] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
    }
}
