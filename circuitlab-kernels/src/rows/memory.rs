//! What processors can be told of memory.

use crate::real::Real;

/// Writes a row past the caches, where the machine can: memory that is next read after much else has gone through them need not be
/// read before it is written. [`written`] must be called on the same thread before another thread reads it.
#[inline(always)]
pub fn write_past_caches<R: Real>(to: &mut [R], from: &[R]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        const BYTES: usize = size_of::<__m128i>();
        let bytes = size_of_val(to);
        if bytes.is_multiple_of(BYTES) && to.as_ptr().addr().is_multiple_of(BYTES) && to.len() == from.len() {
            let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
            for place in 0..bytes / BYTES {
                #[allow(unsafe_code, reason = "stores past the caches have no safe form")]
                // SAFETY: both rows are borrowed and as long as each other, a whole number of 16 bytes of plain numbers; the first is
                // aligned to 16 bytes, the second need not be. The instructions are part of every x86-64 processor.
                unsafe {
                    _mm_stream_si128(to.add(place), _mm_loadu_si128(from.add(place)));
                }
            }
            return;
        }
    }
    to.copy_from_slice(from);
}

/// Ends what [`write_past_caches`] began: other threads see all of it from here on.
#[inline(always)]
pub fn written() {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "a fence for such stores has no safe form")]
    // SAFETY: it orders stores and does nothing else; every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Asks for a row before it is needed, where the machine can be asked.
#[inline(always)]
pub fn prefetch<T>(row: &[T]) {
    prefetch_after(row, 0);
}

/// Asks for as much memory as `row` is, so many bytes after it; nothing happens where there is none. For a walk over several arrays at
/// once, of which the processor sees each as too slow to look far ahead.
#[inline(always)]
pub fn prefetch_after<T>(row: &[T], bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE_BYTES: usize = 64;
        let first = row.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(row)).step_by(LINE_BYTES) {
            #[allow(unsafe_code, reason = "a hint to the processor has no safe form")]
            // SAFETY: a hint reads nothing that the program could see, and does not fail whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(bytes + offset));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, bytes);
}
