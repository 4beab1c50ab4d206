//! The two types that rows are computed in, and what one vector of them can do.

use half::bf16;
use half::slice::HalfFloatSliceExt;
use pulp::Simd;
use pulp::bytemuck::bytes_of;

use crate::slices::Element;

/// `f32` or `f64`, with the vectors of a machine's vector unit.
pub trait Real:
    Element
    + Default
    + PartialOrd
    + std::iter::Sum
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::fmt::Debug
{
    /// As many numbers as one vector holds.
    type Lanes<S: Simd>: Copy;

    /// The number nearest to one of 64 bits.
    fn of(number: f64) -> Self;

    /// The same number in 64 bits.
    fn wide(self) -> f64;

    /// The square root.
    #[must_use]
    fn root(self) -> Self;

    /// Rounds numbers that are none of them NaN to 16 bits, ties to even.
    fn round(numbers: &[Self], to: &mut [bf16]);

    /// The hyperbolic tangent.
    #[must_use]
    fn tanh(self) -> Self;

    /// `self * factor + addend`, rounded once.
    #[must_use]
    fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// How many numbers a vector holds.
    fn lane_count<S: Simd>() -> usize;

    /// A vector of one number.
    fn splat<S: Simd>(simd: S, number: Self) -> Self::Lanes<S>;

    /// The vectors of a slice, and the numbers at its end that fill none.
    fn lanes<S: Simd>(slice: &[Self]) -> (&[Self::Lanes<S>], &[Self]);

    /// The same, to be written to.
    fn lanes_mut<S: Simd>(slice: &mut [Self]) -> (&mut [Self::Lanes<S>], &mut [Self]);

    /// `a + b`.
    fn plus<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;

    /// `a - b`.
    fn minus<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;

    /// `a * b + c`, rounded once.
    fn fused<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>, c: Self::Lanes<S>) -> Self::Lanes<S>;

    /// The smaller of each two.
    fn smaller<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;

    /// `one` where `a < b`, else `other`.
    fn where_less<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>, one: Self::Lanes<S>, other: Self::Lanes<S>) -> Self::Lanes<S>;

    /// Whether `a > b` anywhere.
    fn any_above<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> bool;

    /// A bit for each lane, the first one the lowest: whether `a > b`.
    fn bits_above<S: Simd>(simd: S, a: Self::Lanes<S>, b: Self::Lanes<S>) -> u32;

    /// The sum over a vector.
    fn total<S: Simd>(simd: S, of: Self::Lanes<S>) -> Self;
}

macro_rules! real {
    ($real:ident, $round:path, $lanes:ident, $count:ident, $splat:ident, $slice:ident, $slice_mut:ident, $add:ident, $sub:ident, $fused:ident, $min:ident, $less:ident, $select:ident, $above:ident, $first:ident, $total:ident) => {
        impl Real for $real {
            type Lanes<S: Simd> = S::$lanes;

            #[inline(always)]
            #[allow(clippy::cast_lossless, reason = "one of the two types is the same")]
            fn of(number: f64) -> Self {
                number as Self
            }

            #[inline(always)]
            fn wide(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn round(numbers: &[Self], to: &mut [bf16]) {
                $round(numbers, to);
            }

            #[inline(always)]
            fn tanh(self) -> Self {
                $real::tanh(self)
            }

            #[inline(always)]
            fn mul_add(self, factor: Self, addend: Self) -> Self {
                $real::mul_add(self, factor, addend)
            }

            #[inline(always)]
            fn lane_count<S: Simd>() -> usize {
                S::$count
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, number: Self) -> S::$lanes {
                simd.$splat(number)
            }

            #[inline(always)]
            fn lanes<S: Simd>(slice: &[Self]) -> (&[S::$lanes], &[Self]) {
                S::$slice(slice)
            }

            #[inline(always)]
            fn lanes_mut<S: Simd>(slice: &mut [Self]) -> (&mut [S::$lanes], &mut [Self]) {
                S::$slice_mut(slice)
            }

            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> S::$lanes {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn minus<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> S::$lanes {
                simd.$sub(a, b)
            }

            #[inline(always)]
            fn fused<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes, c: S::$lanes) -> S::$lanes {
                simd.$fused(a, b, c)
            }

            #[inline(always)]
            fn smaller<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> S::$lanes {
                simd.$min(a, b)
            }

            #[inline(always)]
            fn where_less<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes, one: S::$lanes, other: S::$lanes) -> S::$lanes {
                simd.$select(simd.$less(a, b), one, other)
            }

            #[inline(always)]
            fn any_above<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> bool {
                // Which of several places it gives depends on the vector unit; where there is none, it is the number of lanes on all.
                simd.$first(simd.$above(a, b)) < S::$count
            }

            #[inline(always)]
            fn bits_above<S: Simd>(simd: S, a: S::$lanes, b: S::$lanes) -> u32 {
                bits(bytes_of(&simd.$above(a, b)), S::$count)
            }

            #[inline(always)]
            fn total<S: Simd>(simd: S, of: S::$lanes) -> Self {
                simd.$total(of)
            }
        }
    };
}

real!(
    f32,
    round_short,
    f32s,
    F32_LANES,
    splat_f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    add_f32s,
    sub_f32s,
    mul_add_f32s,
    min_f32s,
    less_than_f32s,
    select_f32s,
    greater_than_f32s,
    first_true_m32s,
    reduce_sum_f32s
);
real!(
    f64,
    round_long,
    f64s,
    F64_LANES,
    splat_f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    add_f64s,
    sub_f64s,
    mul_add_f64s,
    min_f64s,
    less_than_f64s,
    select_f64s,
    greater_than_f64s,
    first_true_m64s,
    reduce_sum_f64s
);

/// A mask as bits, the first lane's lowest: masks of vector units have a bit for each lane already, or all bits of each lane.
#[inline(always)]
fn bits(mask: &[u8], lanes: usize) -> u32 {
    match mask {
        [bits] => (*bits).into(),
        [low, high] if lanes > 2 => u16::from_le_bytes([*low, *high]).into(),
        _ => mask.chunks_exact(mask.len() / lanes).rev().fold(0, |bits, lane| bits << 1 | u32::from(lane[0] & 1)),
    }
}

/// Without the branches of `bf16::from_f32`, which cost four times the rest of an optimiser's step.
#[inline(always)]
fn round_short(numbers: &[f32], to: &mut [bf16]) {
    for (to, number) in to.iter_mut().zip(numbers) {
        let bits = number.to_bits();
        *to = bf16::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16);
    }
}

#[inline(always)]
fn round_long(numbers: &[f64], to: &mut [bf16]) {
    to.convert_from_f64_slice(numbers);
}

/// A type that weights are stored in and that is computed with as `R`.
pub trait Stored<R: Real>: Element {
    /// The numbers of `row`: themselves, or in `scratch`, which is at least as long.
    fn widened<'a>(row: &'a [Self], scratch: &'a mut [R]) -> &'a [R];
}

impl<R: Real> Stored<R> for R {
    #[inline(always)]
    fn widened<'a>(row: &'a [Self], _: &'a mut [R]) -> &'a [R] {
        row
    }
}

impl Stored<f32> for bf16 {
    #[inline(always)]
    fn widened<'a>(row: &'a [Self], scratch: &'a mut [f32]) -> &'a [f32] {
        let wide = &mut scratch[..row.len()];
        // A bfloat16 is the upper half of the 32-bit float of the same value.
        wide.iter_mut().zip(row).for_each(|(wide, short)| *wide = f32::from_bits(u32::from(short.to_bits()) << 16));
        wide
    }
}
