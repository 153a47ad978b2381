// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the guest's kernel complains of.
//!
//! The kernel reports a broken rule with a message in its log and mostly goes on: a lock taken in
//! the wrong order, memory used after it was freed, a buffer unmapped twice. A test whose log has
//! such a message has failed, whatever else it found. So has one in which our driver warned of
//! something that the test did not provoke.

use std::fmt;

/// A complaint: its first line, and the lines that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    lines: Vec<String>,
}

/// What complaints start with, anywhere in a line.
const HEADS: &[&str] = &[
    // warn(), lockdep, RCU, KASAN, KFENCE, sleeping in atomic context, lock-ups, SLUB, VM
    "WARNING: ",
    "BUG: ",
    "BUG kmalloc",
    "BUG skbuff",
    "kernel BUG at",
    "Bad page state",
    "UBSAN: ",
    "KASAN: ",
    "INFO: possible ",
    "INFO: inconsistent ",
    "INFO: trying to register non-static key",
    "INFO: task ",
    "INFO: rcu_",
    "INFO: suspicious ",
    "self-detected stall",
    "detected stalls on CPUs",
    "scheduling while atomic",
    "workqueue lockup",
    // faults
    "Oops: ",
    "general protection fault",
    "Unable to handle",
    "unable to handle",
    "stack segment",
    "double fault",
    "Kernel panic",
    "rust_kernel: panicked",
    // what keeps account of objects
    "DMA-API: ",
    "DMAR: [DMA",
    "DMAR: [INTR-REMAP]",
    "ODEBUG: ",
    "refcount_t: ",
    "ref_tracker: ",
    "list_add corruption",
    "list_del corruption",
    "kmemleak: ",
    "stalled pool shutdown",
    "unregister_netdevice: waiting for",
    "sysfs: cannot create duplicate",
    // interrupts, the network
    "nobody cared",
    "No irq handler for vector",
    "NETDEV WATCHDOG",
    "transmit queue",
    "hw csum failure",
    "skb_under_panic",
    "skb_over_panic",
    // memory
    "page allocation failure",
    "SLUB: Unable to allocate",
    "Out of memory",
    "invoked oom-killer",
    "FAULT_INJECTION: forcing a failure",
];

/// What has such a head, or is a warning of our driver, and is none the less in order.
const HARMLESS: &[&str] = &[
    "DMA-API: preallocated",
    "DMA-API: debugging enabled",
    "kmemleak: Kernel memory leak detector initialized",
    "kmemleak: Automatic memory scanning thread",
    "loading out-of-tree module taints kernel",
    "module verification failed",
];

/// What our driver's messages start with, after the time.
const OUR_DRIVER: &str = "ferronic";
/// KERN_WARNING. Smaller is worse.
const LEVEL_WARNING: u32 = 4;
/// How far from its first line a stack trace may still belong to a complaint.
const REACH: usize = 80;

/// Finds the complaints in a log as `dmesg --raw` prints it. Lines without a level count as notices.
pub fn complaints(log: &str) -> Vec<Complaint> {
    let mut found: Vec<Complaint> = Vec::new();
    // How many lines ago the last complaint began.
    let mut age = usize::MAX;
    let mut open = false;
    for line in log.lines() {
        age = age.saturating_add(1);
        let (level, text) = split(line);
        let trace = text.contains("Call Trace:") && age > REACH;
        if is_head(level, text) || trace {
            found.push(Complaint {
                lines: vec![text.to_owned()],
            });
            (age, open) = (0, true);
        } else if let Some(last) = found.last_mut()
            && open
        {
            last.lines.push(text.to_owned());
            open = age < REACH && !text.contains("---[ end trace");
        }
    }
    found
}

/// `<6>[    1.234567] text` as level and the rest. Facilities are above the level's three bits.
fn split(line: &str) -> (u32, &str) {
    let parts = line
        .strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .and_then(|(number, text)| Some((number.parse::<u32>().ok()?, text)));
    match parts {
        Some((number, text)) => (number & 7, text),
        None => (5, line),
    }
}

fn is_head(level: u32, text: &str) -> bool {
    if HARMLESS.iter().any(|harmless| text.contains(harmless)) {
        return false;
    }
    let message = text.split_once("] ").map_or(text, |(_, message)| message);
    HEADS.iter().any(|head| text.contains(head))
        || (level <= LEVEL_WARNING && message.starts_with(OUR_DRIVER))
}

impl Complaint {
    /// Whether it is about one of these.
    pub fn is_any_of(&self, subjects: &[&str]) -> bool {
        let first = self.lines.first().map_or("", String::as_str);
        subjects.iter().any(|subject| first.contains(subject))
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines.iter().take(REACH) {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(log: &str) -> Vec<String> {
        complaints(log)
            .iter()
            .map(|c| c.lines.first().cloned().unwrap_or_default())
            .collect()
    }

    const BOOT: &str = "\
<5>[    0.000000] Linux version 7.3.4 (lab@ferronic) (Debian clang version 19.1.7, GNU ld 2.44) #1 SMP\n\
<6>[    0.000000] Command line: console=ttyS0 root=/dev/nvme0n1 init=/ferronic/init lab.driver=ferronic\n\
<6>[    0.010000] kmemleak: Kernel memory leak detector initialized (mem pool available: 31500)\n\
<6>[    0.020000] DMA-API: preallocated 65536 debug entries\n\
<6>[    0.020000] DMA-API: debugging enabled by kernel config\n\
<6>[    0.030000] rcu: \tRCU lockdep checking is enabled.\n\
<6>[    0.100000] kmemleak: Automatic memory scanning thread started\n\
<6>[    0.200000] nvme nvme0: 2/0/0 default/read/poll queues\n\
<4>[    1.200000] ferronic: loading out-of-tree module taints kernel.\n\
<6>[    1.300000] ferronic 0000:00:03.0: 1 queue pair, MTU 1500\n\
<30>[    2.000000] lab: mark 1\n\
<6>[    3.000000] ferronic 0000:00:03.0 eth0: link down\n";

    #[test]
    fn a_boot_in_good_order_has_none() {
        assert_eq!(heads(BOOT), [] as [String; 0]);
    }

    #[test]
    fn a_splat_is_one_complaint_with_its_trace() {
        let log = "\
<4>[    5.000000] ------------[ cut here ]------------\n\
<4>[    5.000001] WARNING: CPU: 1 PID: 210 at net/core/dev.c:6891 napi_disable+0x1c/0x60\n\
<4>[    5.000002] Modules linked in: ferronic(O)\n\
<4>[    5.000003] Call Trace:\n\
<4>[    5.000004]  <TASK>\n\
<4>[    5.000005]  ? ferronic_remove+0x10/0x20 [ferronic]\n\
<4>[    5.000006] ---[ end trace 0000000000000000 ]---\n\
<6>[    5.100000] eth0: renamed\n";
        let found = complaints(log);
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().contains("ferronic_remove"));
        assert!(!found[0].to_string().contains("renamed"));
    }

    #[test]
    fn what_each_check_writes_is_known() {
        for line in [
            "BUG: KASAN: slab-use-after-free in ferronic_poll+0x1/0x2 [ferronic]",
            "BUG: KASAN: vmalloc-out-of-bounds in memcpy+0x1/0x2",
            "BUG: sleeping function called from invalid context at include/linux/sched/mm.h:321",
            "BUG: scheduling while atomic: ip/215/0x00000202",
            "BUG: unable to handle page fault for address: ffffc90000a00000",
            "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
            "BUG: spinlock bad magic on CPU#0, ip/200",
            "BUG: Bad page state in process ksoftirqd/0  pfn:01234",
            "BUG kmalloc-512 (Tainted: G           O      ): Redzone overwritten",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [iperf3:240]",
            "WARNING: possible circular locking dependency detected",
            "WARNING: possible recursive locking detected",
            "WARNING: inconsistent lock state",
            "WARNING: suspicious RCU usage",
            "WARNING: possible irq lock inversion dependency detected",
            "INFO: trying to register non-static key.",
            "INFO: task ip:215 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "UBSAN: array-index-out-of-bounds in drivers/net/x.c:12:3",
            "DMA-API: ferronic 0000:00:03.0: device driver tries to free DMA memory it has not allocated",
            "ferronic 0000:00:03.0: DMA-API: device driver failed to check map error",
            "DMAR: [DMA Write NO_PASID] Request device [00:03.0] fault addr 0xfff000",
            "ODEBUG: free active (active state 0) object: 0000 object type: timer_list",
            "refcount_t: underflow; use-after-free.",
            "list_del corruption, ffff888003d1c0a0->next is LIST_POISON1",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "page_pool_release_retry() stalled pool shutdown: id 3, 1 inflight 60 sec",
            "unregister_netdevice: waiting for eth0 to become free. Usage count = 2",
            "ferronic 0000:00:03.0 eth0: NETDEV WATCHDOG: CPU: 0: transmit queue 0 timed out 5120 ms",
            "rust_kernel: panicked at /build/module/driver/rx.rs:10:5: attempt to add with overflow",
            "kernel BUG at rust/helpers/bug.c:7!",
            "Oops: invalid opcode: 0000 [#1] SMP KASAN NOPTI",
            "eth0: hw csum failure",
            "irq 25: nobody cared (try booting with the \"irqpoll\" option)",
            "iperf3: page allocation failure: order:0, mode:0x820(GFP_ATOMIC), nodemask=(null)",
        ] {
            assert_eq!(
                heads(&format!("<4>[    9.000000] {line}\n")).len(),
                1,
                "{line}"
            );
        }
    }

    #[test]
    fn our_driver_may_inform_but_not_warn() {
        let log =
            "<4>[ 1.0] ferronic 0000:00:03.0: used id 700 of 256\n<3>[ 1.1] ferronic: no memory\n";
        assert_eq!(complaints(log).len(), 2);
        assert!(heads("<4>[ 1.0] e1000 0000:00:03.0: used id 700\n").is_empty());
        assert!(heads("<6>[ 1.0] ferronic 0000:00:03.0: link up\n").is_empty());
    }

    #[test]
    fn a_trace_of_something_unknown_counts_too() {
        assert_eq!(
            heads("<4>[ 1.0] who knows\n<4>[ 1.0] Call Trace:\n<4>[ 1.0]  f+1/2\n").len(),
            1
        );
    }

    #[test]
    fn what_a_test_provokes_can_be_told() {
        let log = "<4>[ 1.0] python3: page allocation failure: order:0\n<4>[ 1.0] Call Trace:\n";
        let found = complaints(log);
        assert!(found.len() == 1 && found[0].is_any_of(&["page allocation failure"]));
        assert!(!found[0].is_any_of(&["WARNING: "]));
    }
}
