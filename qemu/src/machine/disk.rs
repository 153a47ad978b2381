// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine's disk: the root file system, and behind it our driver, if there is one.
//!
//! Two disks would be simpler. But the kernel probes controllers, and namespaces of one controller,
//! at the same time; which of them it calls nvme0n1 and takes the root from is left to chance. So
//! there is one disk, of two files one after the other: a VMDK descriptor is QEMU's way to say that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::lab::System;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    file: PathBuf,
    format: &'static str,
    /// Where the tar file with our driver starts.
    pub module_at_mib: Option<u64>,
}

impl Disk {
    /// Makes the disk; `descriptor` is written if more than one file is on it.
    pub fn make(system: &System, descriptor: &Path) -> Result<Self> {
        let Some(module) = &system.module else {
            return Ok(Disk {
                file: system.image.clone(),
                format: "raw",
                module_at_mib: None,
            });
        };
        let root_size = size(&system.image)?;
        let text = describe(&[(&system.image, root_size), (module, size(module)?)]);
        fs::write(descriptor, text)
            .with_context(|| format!("cannot write {}", descriptor.display()))?;
        Ok(Disk {
            file: descriptor.to_owned(),
            format: "vmdk",
            module_at_mib: Some(root_size / MIB),
        })
    }

    /// QEMU's option `-drive` for it, called `root`.
    pub fn drive(&self) -> String {
        format!(
            "if=none,id=root,format={},snapshot=on,file={}",
            self.format,
            self.file.display()
        )
    }
}

fn size(file: &Path) -> Result<u64> {
    let meta = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?;
    ensure!(
        meta.len() % MIB == 0,
        "{} has {} octets, not whole MiB",
        file.display(),
        meta.len()
    );
    Ok(meta.len())
}

/// A VMDK descriptor of plain files, one after the other.
fn describe(files: &[(&PathBuf, u64)]) -> String {
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n",
    );
    for (file, size) in files {
        text += &format!("RW {} FLAT \"{}\" 0\n", size / SECTOR, file.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_one_after_the_other() {
        let (root, module) = (
            PathBuf::from("/a/root.ext4"),
            PathBuf::from("/b/module.tar"),
        );
        let text = describe(&[(&root, 1024 * MIB), (&module, 2 * MIB)]);
        assert!(
            text.ends_with(
                "RW 2097152 FLAT \"/a/root.ext4\" 0\nRW 4096 FLAT \"/b/module.tar\" 0\n"
            )
        );
    }
}
