//! The types that both safetensors and libtorch have.

use safetensors::tensor::Dtype;
use tch::Kind;

pub(super) const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

pub(super) fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find_map(|(stored, kind)| (*stored == dtype).then_some(*kind))
}

pub(super) fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find_map(|(dtype, known)| (*known == kind).then_some(*dtype))
}
