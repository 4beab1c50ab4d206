//! The thread between the forward pass and its visitor.

use circuitlab_core::{Action, BlockHook, Error, HookPoint, HookVisitor};
use tch::Tensor;

/// Why a forward pass ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// The visitor has what it wants.
    Stopped,
    /// Something failed.
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<tch::TchError> for Halt {
    fn from(error: tch::TchError) -> Self {
        Self::Failed(error.into())
    }
}

/// Shows values to a visitor, and goes on with what the visitor makes of them.
pub(super) struct Walk<'a> {
    visitor: &'a mut dyn HookVisitor,
}

impl<'a> Walk<'a> {
    pub(super) fn new(visitor: &'a mut dyn HookVisitor) -> Self {
        Self { visitor }
    }

    pub(super) fn wants(&self, point: HookPoint) -> bool {
        self.visitor.wants(point)
    }

    /// Shows a value and gives back the one to go on with.
    pub(super) fn show(&mut self, point: HookPoint, value: Tensor) -> Result<Tensor, Halt> {
        if !self.visitor.wants(point) {
            return Ok(value);
        }
        match self.visitor.visit(point, &value)? {
            Action::Continue => Ok(value),
            Action::Replace(new) => replaced(point, &value, &new),
            Action::Stop => Err(Halt::Stopped),
        }
    }

    /// The part of the walk that lies in one block.
    pub(super) fn block(&mut self, layer: usize) -> BlockWalk<'_, 'a> {
        BlockWalk { walk: self, layer }
    }
}

/// A walk through one block.
pub(super) struct BlockWalk<'w, 'a> {
    pub(super) walk: &'w mut Walk<'a>,
    layer: usize,
}

impl BlockWalk<'_, '_> {
    pub(super) fn point(&self, hook: BlockHook) -> HookPoint {
        HookPoint::block(self.layer, hook)
    }

    pub(super) fn wants(&self, hook: BlockHook) -> bool {
        self.walk.wants(self.point(hook))
    }

    pub(super) fn show(&mut self, hook: BlockHook, value: Tensor) -> Result<Tensor, Halt> {
        self.walk.show(self.point(hook), value)
    }
}

/// A replacement is moved to the device and type of what it replaces; its shape must be right already.
fn replaced(point: HookPoint, old: &Tensor, new: &Tensor) -> Result<Tensor, Halt> {
    if new.size() != old.size() {
        let message = format!("replacement at `{point}`: expected shape {:?}, got {:?}", old.size(), new.size());
        return Err(Error::Invalid(message).into());
    }
    Ok(new.f_to_device(old.device())?.f_to_kind(old.kind())?)
}
