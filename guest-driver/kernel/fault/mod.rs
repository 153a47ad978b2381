// SPDX-License-Identifier: GPL-2.0

//! Where things that hardly ever fail are made to fail by tests.
//!
//! C header: [`include/linux/fault-inject.h`](srctree/include/linux/fault-inject.h)

use kernel::prelude::*;

/// Fails with `EIO` if that is what a test wants of this thread: with `/proc/thread-self/fail-nth`,
/// as for allocations. On kernels without fault injection this is nothing.
///
/// May be called in any context.
#[inline]
pub(crate) fn point() -> Result {
    #[cfg(CONFIG_FAULT_INJECTION)]
    // SAFETY: The function has no preconditions.
    if unsafe { crate::bindings::ferronic_should_fail() } {
        return Err(EIO);
    }
    Ok(())
}
