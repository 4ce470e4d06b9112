//! Uniforms and bind groups. Each is made once, and every call that needs the same uses it again.

use super::scope::ErrorScope;
use crate::error::Error;
use crate::plan::{Operand, Params};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The part of a buffer that an operand is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Binding<'a> {
    pub operand: Operand,
    pub buffer: &'a wgpu::Buffer,
    pub offset: u64,
    /// `None` for the rest of the buffer.
    pub size: Option<NonZeroU64>,
}

impl<'a> Binding<'a> {
    fn entry(&self) -> wgpu::BindGroupEntry<'a> {
        let Self { operand, buffer, offset, size } = *self;
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
        wgpu::BindGroupEntry { binding: operand.binding(), resource }
    }
}

/// Uniform values on the device, shared by all operations. Each value has its own place, which is written once. So a call
/// that is recorded but not yet submitted keeps its values when other calls are recorded. When a buffer of places is full,
/// the next one is made. The old one lives as long as a bind group holds it.
#[derive(Debug, Default)]
pub(super) struct Uniforms(Mutex<Option<Places>>);

#[derive(Debug)]
struct Places {
    buffer: wgpu::Buffer,
    /// Bytes from one place to the next.
    stride: u64,
    /// Where each value is, in bytes.
    offsets: HashMap<[u8; size_of::<Params>()], u32>,
}

/// Values in one buffer: 64 KiB at WebGPU's alignment.
const PLACES: usize = 256;

impl Uniforms {
    /// The buffer that holds `params`, and where.
    pub(super) fn place(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        params: &Params,
        making: &mut Making,
    ) -> (wgpu::Buffer, u32) {
        let mut places = lock(&self.0);
        let Places { buffer, stride, offsets } = match places.take() {
            Some(begun) if begun.offsets.len() < PLACES => places.insert(begun),
            _ => {
                making.begin(device);
                let alignment = u64::from(device.limits().min_uniform_buffer_offset_alignment);
                let stride = (size_of::<Params>() as u64).next_multiple_of(alignment);
                let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("attention params"),
                    size: stride * PLACES as u64,
                    usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                });
                // A submission clears what it finds unwritten in the buffers it binds, and on another thread it may find a
                // place just before a value is written there: so all places are written first.
                queue.write_buffer(&buffer, 0, &vec![0; stride as usize * PLACES]);
                places.insert(Places { buffer, stride, offsets: HashMap::with_capacity(PLACES) })
            }
        };
        let next = offsets.len() as u64 * *stride;
        let bytes = bytemuck::cast(*params);
        let offset = *offsets.entry(bytes).or_insert_with(|| {
            making.begin(device);
            // The queue writes it before the next submission runs, and so before any call that reads it.
            queue.write_buffer(buffer, next, &bytes);
            next as u32
        });
        (buffer.clone(), offset)
    }

    /// Forgets all places: a write may have failed.
    pub(super) fn clear(&self) {
        *lock(&self.0) = None;
    }
}

/// The bind groups of one operation.
///
/// A bind group keeps the caller's buffers alive. So it is kept only when the same buffers come a second time. At most
/// [`BIND_GROUPS`] are kept; the one that was unused for longest is dropped first. Buffers that are used once are not held.
#[derive(Debug, Default)]
pub(super) struct BindGroups {
    hasher: RandomState,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    groups: HashMap<u64, Group>,
    /// Hashes of bindings that came once, the latest last.
    seen: VecDeque<u64>,
    uses: u64,
}

/// What one call had to make, and what wgpu says about it. Calls that make nothing ask wgpu nothing.
#[derive(Default)]
pub(super) struct Making {
    scope: Option<ErrorScope>,
    /// The hash of the bindings of each new bind group, and the group if they came before.
    groups: Vec<(u64, Option<Group>)>,
}

impl Making {
    fn begin(&mut self, device: &wgpu::Device) {
        self.scope.get_or_insert_with(|| ErrorScope::open(device, "encoding"));
    }

    /// The new bind groups, for [`BindGroups::note`].
    pub(super) fn end(self) -> Result<Vec<(u64, Option<Group>)>, Error> {
        self.scope.map_or(Ok(()), ErrorScope::close_now).map(|()| self.groups)
    }
}

#[derive(Debug)]
pub(super) struct Group {
    bindings: Vec<(Operand, wgpu::Buffer, u64, Option<NonZeroU64>)>,
    group: wgpu::BindGroup,
    last_use: u64,
}

/// Sets of buffers that one operation remembers. It is enough for one operation that serves all layers of a model: an append has three
/// passes, and lengths that change places in each step give each of them two sets in each of 80 layers.
pub(super) const BIND_GROUPS: usize = 512;

impl BindGroups {
    /// The bind group of the pass with this index and layout.
    pub(super) fn get(
        &self,
        device: &wgpu::Device,
        (index, layout): (usize, &wgpu::BindGroupLayout),
        bindings: &[Binding],
        making: &mut Making,
    ) -> wgpu::BindGroup {
        let hash = self.hasher.hash_one((index, bindings));
        let mut kept = lock(&self.kept);
        kept.uses += 1;
        let now = kept.uses;
        if let Some(found) = kept.groups.get_mut(&hash)
            && found.is_of(bindings)
        {
            found.last_use = now;
            return found.group.clone();
        }
        let came_before = kept.seen.contains(&hash);
        drop(kept);
        making.begin(device);
        let entries: Vec<_> = bindings.iter().map(Binding::entry).collect();
        let descriptor = wgpu::BindGroupDescriptor { label: Some("attention"), layout, entries: &entries };
        let group = device.create_bind_group(&descriptor);
        let bindings = || bindings.iter().map(|b| (b.operand, b.buffer.clone(), b.offset, b.size)).collect();
        let to_keep = came_before.then(|| Group { bindings: bindings(), group: group.clone(), last_use: now });
        making.groups.push((hash, to_keep));
        group
    }

    /// Remembers bind groups that wgpu had nothing against. A broken one must not be found again.
    pub(super) fn note(&self, made: Vec<(u64, Option<Group>)>) {
        let mut kept = lock(&self.kept);
        for (hash, to_keep) in made {
            let position = kept.seen.iter().position(|&seen| seen == hash);
            match (position, to_keep) {
                (None, None) => {
                    if kept.seen.len() == BIND_GROUPS {
                        kept.seen.pop_front();
                    }
                    kept.seen.push_back(hash);
                }
                (Some(position), Some(group)) => {
                    kept.seen.remove(position);
                    kept.keep(hash, group);
                }
                // Twice in one call, or by two threads at once.
                _ => {}
            }
        }
    }

    /// Lets go of all buffers.
    pub(super) fn clear(&self) {
        *lock(&self.kept) = Kept::default();
    }
}

impl Kept {
    fn keep(&mut self, hash: u64, group: Group) {
        if self.groups.len() >= BIND_GROUPS
            && let Some(&oldest) = self.groups.iter().min_by_key(|(_, group)| group.last_use).map(|(hash, _)| hash)
        {
            self.groups.remove(&oldest);
        }
        self.groups.insert(hash, group);
    }
}

impl Group {
    fn is_of(&self, bindings: &[Binding]) -> bool {
        self.bindings.len() == bindings.len()
            && self.bindings.iter().zip(bindings).all(|((operand, buffer, offset, size), binding)| {
                Binding { operand: *operand, buffer, offset: *offset, size: *size } == *binding
            })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
