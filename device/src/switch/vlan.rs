// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VLANs: of which a port is a member, and which frames carry a tag there (IEEE 802.1Q).

use std::fmt;
use std::str::FromStr;

/// Bits of a tag that are the VLAN identifier.
const VID: u16 = 0xfff;
/// The VLAN of frames without a tag, where nothing else is said (IEEE 802.1Q, 9.6, the default PVID).
const DEFAULT: VlanId = VlanId(1);

/// A VLAN's number, 1 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The VLAN of this number, if it can have it: 0 is none, and 4095 is reserved.
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(VlanId(id))
    }

    /// Its number.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// Why a text names no VLANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadVlan(String);

impl fmt::Display for BadVlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadVlan {}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VlanId {
    type Err = BadVlan;

    fn from_str(text: &str) -> Result<Self, BadVlan> {
        let id = text.parse().ok().and_then(VlanId::new);
        id.ok_or_else(|| {
            BadVlan(format!(
                "'{}' is no VLAN; those are 1 to 4094",
                text.escape_debug()
            ))
        })
    }
}

/// A set of VLANs: all, or those named, as in `10,20-29` or, where commas mean something else,
/// `10+20-29`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanSet {
    /// Every VLAN.
    All,
    /// These, as ranges from and to, in ascending order.
    These(Vec<(VlanId, VlanId)>),
}

impl VlanSet {
    /// Whether the VLAN is in the set.
    pub fn has(&self, vlan: VlanId) -> bool {
        match self {
            VlanSet::All => true,
            VlanSet::These(ranges) => ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&vlan)),
        }
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VlanSet::These(ranges) = self else {
            return f.write_str("all");
        };
        for (place, (first, last)) in ranges.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for VlanSet {
    type Err = BadVlan;

    fn from_str(text: &str) -> Result<Self, BadVlan> {
        if text == "all" {
            return Ok(VlanSet::All);
        }
        let mut ranges = text
            .split([',', '+'])
            .map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let (first, last) = (first.parse()?, last.parse()?);
                if first > last {
                    return Err(BadVlan(format!("the range {first}-{last} is empty")));
                }
                Ok((first, last))
            })
            .collect::<Result<Vec<(VlanId, VlanId)>, _>>()?;
        ranges.sort_unstable();
        Ok(VlanSet::These(ranges))
    }
}

/// What a port does with tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanMode {
    /// A member of one VLAN, whose frames have no tag there. What comes with a tag is dropped,
    /// unless it names no VLAN but only a priority.
    Access(VlanId),
    /// A member of several, whose frames have a tag there.
    Trunk {
        /// Those it is a member of.
        allowed: VlanSet,
        /// One whose frames have no tag; without it, what comes without a tag is dropped.
        native: Option<VlanId>,
    },
}

impl Default for VlanMode {
    /// All VLANs; what has no tag is of VLAN 1.
    fn default() -> Self {
        VlanMode::Trunk {
            allowed: VlanSet::All,
            native: Some(DEFAULT),
        }
    }
}

/// How a frame goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Without a tag.
    Untagged,
    /// With one.
    Tagged,
}

impl VlanMode {
    /// The mode that these three options mean, of which `vlan` excludes the others.
    pub fn new(
        vlan: Option<VlanId>,
        trunk: Option<VlanSet>,
        native: Option<VlanId>,
    ) -> Result<Self, BadVlan> {
        match (vlan, trunk, native) {
            (None, None, None) => Ok(VlanMode::default()),
            (Some(vlan), None, None) => Ok(VlanMode::Access(vlan)),
            (None, Some(allowed), native) => Ok(VlanMode::Trunk { allowed, native }),
            (None, None, native) => Ok(VlanMode::Trunk {
                allowed: VlanSet::All,
                native,
            }),
            (Some(_), _, _) => Err(BadVlan(
                "a port has either one VLAN (vlan) or is a trunk (trunk, native)".into(),
            )),
        }
    }

    /// The VLAN of a frame that comes in with this tag or none; `None` when the port does not take
    /// it.
    pub fn ingress(&self, tag: Option<u16>) -> Option<VlanId> {
        let tagged = tag.and_then(|tag| match tag & VID {
            0 => None,
            id => Some(VlanId::new(id)),
        });
        match (self, tagged) {
            (VlanMode::Access(vlan), None) => Some(*vlan),
            (VlanMode::Access(_), Some(_)) => None,
            (VlanMode::Trunk { native, .. }, None) => *native,
            (VlanMode::Trunk { allowed, native }, Some(vlan)) => {
                vlan.filter(|vlan| allowed.has(*vlan) || *native == Some(*vlan))
            }
        }
    }

    /// How a frame of the VLAN goes out; `None` when the port is no member.
    pub fn egress(&self, vlan: VlanId) -> Option<Form> {
        match self {
            VlanMode::Access(own) => (*own == vlan).then_some(Form::Untagged),
            VlanMode::Trunk { native, .. } if *native == Some(vlan) => Some(Form::Untagged),
            VlanMode::Trunk { allowed, .. } => allowed.has(vlan).then_some(Form::Tagged),
        }
    }
}

impl fmt::Display for VlanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VlanMode::Access(vlan) => write!(f, "vlan {vlan}"),
            VlanMode::Trunk { allowed, native } => {
                write!(f, "trunk {allowed}")?;
                match native {
                    Some(native) => write!(f, ", native {native}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan(id: u16) -> VlanId {
        VlanId::new(id).unwrap()
    }

    #[test]
    fn an_access_port_takes_no_tags_but_a_priority() {
        let port = VlanMode::Access(vlan(10));
        assert_eq!(port.ingress(None), Some(vlan(10)));
        assert_eq!(port.ingress(Some(0xe000)), Some(vlan(10)));
        assert_eq!(port.ingress(Some(10)), None);
        assert_eq!(port.ingress(Some(11)), None);
        assert_eq!(port.egress(vlan(10)), Some(Form::Untagged));
        assert_eq!(port.egress(vlan(11)), None);
    }

    #[test]
    fn a_trunk_takes_what_it_is_allowed() {
        let allowed: VlanSet = "20-22,7".parse().unwrap();
        let port = VlanMode::new(None, Some(allowed), Some(vlan(5))).unwrap();
        assert_eq!(port.ingress(None), Some(vlan(5)));
        for (tag, taken) in [(7, true), (20, true), (22, true), (5, true), (23, false)] {
            assert_eq!(port.ingress(Some(0x6000 | tag)).is_some(), taken, "{tag}");
            assert_eq!(port.egress(vlan(tag)).is_some(), taken, "{tag}");
        }
        assert_eq!(port.ingress(Some(4095)), None);
        assert_eq!(port.egress(vlan(5)), Some(Form::Untagged));
        assert_eq!(port.egress(vlan(7)), Some(Form::Tagged));
        let strict = VlanMode::new(None, Some(VlanSet::All), None).unwrap();
        assert_eq!(strict.ingress(None), None);
        assert_eq!(strict.ingress(Some(0)), None);
        assert_eq!(strict.ingress(Some(4094)), Some(vlan(4094)));
    }

    #[test]
    fn by_default_everything_passes() {
        let port = VlanMode::default();
        assert_eq!(port.ingress(None), Some(vlan(1)));
        assert_eq!(port.egress(vlan(1)), Some(Form::Untagged));
        assert_eq!(port.ingress(Some(9)), Some(vlan(9)));
        assert_eq!(port.egress(vlan(9)), Some(Form::Tagged));
    }

    #[test]
    fn sets_are_read_and_written_and_nonsense_is_refused() {
        for text in ["all", "1", "1-4094", "7,20-29"] {
            assert_eq!(text.parse::<VlanSet>().unwrap().to_string(), text);
        }
        assert_eq!("7+9".parse::<VlanSet>(), "7,9".parse());
        for bad in ["", "0", "4095", "1-", "-1", "9-8", "a", "1,,2", "1 "] {
            assert!(bad.parse::<VlanSet>().is_err(), "{bad}");
        }
        assert!(VlanMode::new(Some(vlan(1)), Some(VlanSet::All), None).is_err());
        assert_eq!(VlanMode::default().to_string(), "trunk all, native 1");
    }
}
