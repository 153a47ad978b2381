// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Several guests on one switch.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qapi::qmp;

use super::{SWITCH, Scenario};
use crate::cable::{INTERFACE, wait_carrier};
use crate::far_end::{PORT, bytes_client};
use crate::machine::nic::Attach;
use crate::machine::{Machine, Spec};
use crate::net::{GUEST_IP, HOST_IP};
use crate::station::{self, Station};
use crate::test::Form;
use crate::test::bed::Bed;
use crate::traffic::{Client, Direction};

pub const TABLE: &[Scenario] = &[
    Scenario::new("switch", &[SWITCH], guests_on_a_switch).discard(),
    Scenario::new("port_link", &[SWITCH], port_link),
];

const LIMIT: Duration = Duration::from_secs(60);

/// Another guest on the bed's switch.
struct Neighbour {
    name: &'static str,
    socket: PathBuf,
    address: String,
    mac: String,
    machine: Machine,
}

impl Neighbour {
    /// Adds a port and boots a guest there.
    fn boot(bed: &Bed, name: &'static str, number: u8, attach: Attach) -> Result<Self> {
        let socket = bed
            .lab
            .run
            .dir
            .join(format!("{}.sock", bed.lab.unique(name)));
        let mac = station::mac(number);
        add_port(bed, name, &socket, &["--mac", &mac])?;
        let nic = bed.backend()?.nic_at(&socket, attach, 1)?;
        let mut spec = Spec::new(format!("{}-{name}", bed.setup), nic);
        (spec.driver, spec.kernel) = (Some(bed.setup.driver), bed.setup.kernel);
        if attach == Attach::Netdev {
            spec.nic_property(&format!("mac={mac}"));
        }
        let station = Station::boot(bed.lab, &spec, number)?;
        station.join()?;
        let Station { address, machine } = station;
        Ok(Neighbour {
            name,
            socket,
            address,
            mac,
            machine,
        })
    }

    /// Takes its port away, and makes it anew with these options at the same socket.
    fn move_to(&self, bed: &Bed, options: &[&str]) -> Result<()> {
        bed.backend()?.control(&["port", "remove", self.name])?;
        wait_carrier(&self.machine.guest, false)?;
        add_port(bed, self.name, &self.socket, options)?;
        wait_carrier(&self.machine.guest, true)
    }
}

fn add_port(bed: &Bed, name: &str, socket: &std::path::Path, options: &[&str]) -> Result<()> {
    let socket = socket.display().to_string();
    let mut arguments = vec!["port", "add", "--name", name, "--socket-path", &socket];
    arguments.extend(options);
    bed.backend()?.control(&arguments).map(|_| ())
}

fn ping(from: &Machine, to: &str) -> Result<()> {
    let command = format!("ping -q -c 5 -i 0.05 -w 20 {to}");
    from.guest.sh(&command).map(|_| ())
}

/// Fails if the two reach each other.
fn no_ping(from: &Machine, to: &str) -> Result<()> {
    let command = format!("! ping -q -c 3 -i 0.3 -w 2 {to}");
    from.guest.sh(&command).map(|_| ())
}

/// A counter of a port's first receive queue: packets lost for this reason.
fn lost(bed: &Bed, port: &str, reason: &str) -> Result<u64> {
    let stats = bed.backend()?.query(&["stats", "--port", port])?;
    let count = stats.pointer(&format!("/queues/0/rx/drops/{reason}"));
    Ok(count.and_then(serde_json::Value::as_u64).unwrap_or(0))
}

/// Two guests and then a third talk through the switch; VLANs keep them apart; ports go and come; one
/// that stands still holds up nobody.
fn guests_on_a_switch(bed: &mut Bed, form: Form) -> Result<()> {
    let b = Neighbour::boot(bed, "b", 3, Attach::Netdev)?;
    talk(bed, &b, form).context("two guests on the switch")?;
    apart(bed, &b).context("VLANs")?;
    let c = Neighbour::boot(bed, "c", 4, Attach::Device)?;
    stands_still(bed, &b, &c, form).context("a guest that stands still")?;
    b.machine.quit()?;
    c.machine.quit()
}

fn talk(bed: &Bed, b: &Neighbour, form: Form) -> Result<()> {
    let a = &bed.machine;
    ping(a, &b.address)?;
    ping(&b.machine, GUEST_IP)?;
    ping(&b.machine, HOST_IP)?;
    let serve = format!("bytes-check serve {} {PORT}", b.address);
    let server = b.machine.guest.spawn(&serve)?;
    let listens = format!("until ss -Hltn 'sport = :{PORT}' | grep -q LISTEN; do sleep 0.1; done");
    b.machine
        .guest
        .sh_within(&listens, Duration::from_secs(10))?;
    let bytes = form.pick(16, 256) << 20;
    let limit = Duration::from_secs(form.pick(60, 600));
    for (verb, amount) in [("send", bytes), ("fetch", bytes), ("echo", 300)] {
        let client = bytes_client(&b.address, verb, amount);
        a.guest.sh_within(&client, limit)?;
    }
    server.kill()?;
    b.machine.guest.sh("iperf3 --server --daemon")?;
    for direction in [Direction::GuestToHost, Direction::HostToGuest] {
        let client = Client::new(&b.address, direction, form.pick(3, 20));
        let transfer = client.run(&a.guest)?;
        println!(
            "  guest to guest, {direction:?}: {:.2} Gb/s, {} retransmits",
            transfer.gbps, transfer.retransmits
        );
        transfer.ensure_flowed()?;
    }
    Ok(())
}

fn apart(bed: &Bed, b: &Neighbour) -> Result<()> {
    let a = &bed.machine;
    b.move_to(bed, &["--vlan", "20"])?;
    no_ping(a, &b.address)?;
    no_ping(&b.machine, GUEST_IP)?;
    ping(a, HOST_IP)?;
    // The first guest is at a trunk: with a tag it is in that VLAN, too.
    a.guest.sh(&format!(
        "ip link add link {INTERFACE} name tagged type vlan id 20 && ip link set tagged up && \
         ip addr add 10.78.0.2/24 dev tagged"
    ))?;
    let far = format!("ip addr add 10.78.0.3/24 dev {INTERFACE}");
    b.machine.guest.sh(&far)?;
    ping(a, "10.78.0.3")?;
    a.guest.sh("ip link del tagged")?;
    b.move_to(bed, &[])?;
    ping(a, &b.address)
}

/// `b` stands still, first as QMP's `stop` has it, of which the backend is told, and then because its
/// QEMU is not scheduled any more, of which it is not. What `a` and `c` say to each other meanwhile
/// passes all the same, and `b` goes on afterwards.
fn stands_still(bed: &Bed, b: &Neighbour, c: &Neighbour, form: Form) -> Result<()> {
    let a = &bed.machine;
    c.machine.guest.sh("iperf3 --server --daemon")?;
    let between = Client::new(&c.address, Direction::GuestToHost, form.pick(3, 20));
    let before = between.run(&a.guest)?.gbps;
    b.machine.qmp(|q| q.execute(&qmp::stop {}).map(|_| ()))?;
    meanwhile(bed, b, c, &between, before)?;
    b.machine.qmp(|q| q.execute(&qmp::cont {}).map(|_| ()))?;
    ping(a, &b.address)?;
    let told = lost(bed, b.name, "no-driver")?;
    ensure!(told > 0, "the guest that was stopped has lost nothing");

    b.machine.freeze(true)?;
    let result = meanwhile(bed, b, c, &between, before);
    b.machine.freeze(false)?;
    result?;
    let untold = lost(bed, b.name, "no-buffers")?;
    ensure!(untold > 0, "the guest that was frozen has lost nothing");
    ping(a, &b.address)?;
    ping(&b.machine, &c.address)
}

/// A transfer from `a` to `c` while `a` also sends to `b`, which stands still.
fn meanwhile(bed: &Bed, b: &Neighbour, c: &Neighbour, between: &Client, before: f64) -> Result<()> {
    let a = &bed.machine;
    // More than its ring and the switch hold, and without asking where it is: it would not answer.
    let flood = a.guest.spawn(&format!(
        "ip neigh replace {0} lladdr {1} dev {INTERFACE} nud permanent && \
         python3 -c 'import socket,time\n\
         s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
         for n in range(300):\n\
         \x20for i in range(10): s.sendto(bytes(1400),(\"{0}\",9))\n\
         \x20time.sleep(0.005)'",
        b.address, b.mac
    ))?;
    let during = between.run(&a.guest)?.gbps;
    ping(&c.machine, GUEST_IP)?;
    ping(a, HOST_IP)?;
    flood.wait(LIMIT)?;
    println!("  beside a guest that stands still: {during:.2} Gb/s, before {before:.2}");
    ensure!(
        during > before / 10.0,
        "only {during:.3} Gb/s of {before:.3}"
    );
    Ok(())
}

/// The cable of one port is pulled and put back, and so is that of the way out.
fn port_link(bed: &mut Bed, _: Form) -> Result<()> {
    bed.set_link(false)?;
    wait_carrier(bed.guest(), false)?;
    bed.set_link(true)?;
    wait_carrier(bed.guest(), true)?;
    ping(&bed.machine, HOST_IP)?;
    let backend = bed.backend()?;
    backend.control(&["link", "down", "--port", "uplink"])?;
    no_ping(&bed.machine, HOST_IP)?;
    wait_carrier(bed.guest(), true)?;
    backend.control(&["link", "up", "--port", "uplink"])?;
    ping(&bed.machine, HOST_IP)
}
