//! Tables that look-ups hit at random.

use std::hint::black_box;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

/// Has the allocator join the many small pieces of memory that reading a vocabulary left: else the first text would wait
/// for it, some ten milliseconds.
pub fn join_freed() {
    drop(black_box(Vec::<u8>::with_capacity(1 << 16)));
}

/// Where the processor's large pages begin.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Many `T` of zeros, on large pages where the system has them: with 4 KB pages the place of a page is rarely known to
/// the processor when a look-up in some megabytes needs it. Memory is used when it is first written to.
pub struct LargeSlice<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    Mapped {
        map: MmapMut,
        start: usize,
        end: usize,
    },
    /// What is small, or where the system maps no memory.
    Heap(Vec<T>),
}

impl<T: Pod> LargeSlice<T> {
    /// `len` of them, all bits zero.
    pub fn new(len: usize) -> Self {
        let num_bytes = len * size_of::<T>();
        // The last page has to be there wholly, and is used as far as it is written to.
        let num_mapped = num_bytes.next_multiple_of(LARGE_PAGE_BYTES) + LARGE_PAGE_BYTES;
        let map = (num_bytes >= LARGE_PAGE_BYTES / 2).then(|| MmapMut::map_anon(num_mapped));
        let memory = match map {
            Some(Ok(map)) => {
                #[cfg(target_os = "linux")]
                // Only advice: without it everything works, somewhat slower.
                let _ = map.advise(memmap2::Advice::HugePage);
                let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES).min(LARGE_PAGE_BYTES);
                Memory::Mapped { map, start, end: start + num_bytes }
            }
            _ => Memory::Heap(vec![T::zeroed(); len]),
        };
        Self { memory }
    }

    /// All of them.
    #[inline]
    pub fn get(&self) -> &[T] {
        match &self.memory {
            Memory::Mapped { map, start, end } => cast_slice(&map[*start..*end]),
            Memory::Heap(items) => items,
        }
    }

    /// All of them, to write to.
    #[inline]
    pub fn get_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Mapped { map, start, end } => cast_slice_mut(&mut map[*start..*end]),
            Memory::Heap(items) => items,
        }
    }
}

impl<T: Pod> Clone for LargeSlice<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::new(self.get().len());
        copy.get_mut().copy_from_slice(self.get());
        copy
    }
}

impl<T: Pod> std::fmt::Debug for LargeSlice<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LargeSlice").field("len", &self.get().len()).finish()
    }
}
