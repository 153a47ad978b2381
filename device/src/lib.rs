// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The NIC as a process: a virtio-net device served over vhost-user.
