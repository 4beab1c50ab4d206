//! How much a group has sent.

use std::fmt;

/// A collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The tensors of all become their sum, or another reduction, on every rank.
    AllReduce,
    /// Every rank gets the tensors of all.
    AllGather,
    /// Every rank gets a part of the sum of all.
    ReduceScatter,
    /// Every rank gets the tensor of one.
    Broadcast,
    /// Nobody goes on before all are there.
    Barrier,
}

impl Operation {
    /// All of them, in the order of [`Traffic`].
    pub const ALL: [Self; 5] = [Self::AllReduce, Self::AllGather, Self::ReduceScatter, Self::Broadcast, Self::Barrier];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Calls of each operation, and the bytes of tensors that this rank has sent in them; what goes around them is not counted.
///
/// Of a tensor of `s` bytes in a group of `n` ranks, a rank sends `2 s (n - 1) / n` in an all-reduce, its own share `n - 1` times in an
/// all-gather, what is not its own share in a reduce-scatter, and `s` in a broadcast where it has it (to each of the ranks that it
/// passes it on to).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic([(u64, u64); Operation::ALL.len()]);

impl Traffic {
    /// How often an operation was called.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.0[operation as usize].0
    }

    /// Bytes that this rank sent in it.
    pub fn bytes(&self, operation: Operation) -> u64 {
        self.0[operation as usize].1
    }

    /// Bytes that this rank sent in all of them.
    pub fn all_bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }

    pub(crate) fn count(&mut self, operation: Operation, bytes: u64) {
        let (calls, sum) = &mut self.0[operation as usize];
        *calls += 1;
        *sum += bytes;
    }
}
