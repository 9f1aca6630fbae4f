//! Memory for tables with random look-ups.

use std::hint::black_box;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use memmap2::MmapMut;

/// Makes the allocator join the many small blocks of freed memory that reading a vocabulary left; otherwise the first
/// text would wait for this, some ten milliseconds.
pub fn join_freed() {
    drop(black_box(Vec::<u8>::with_capacity(1 << 16)));
}

/// Size and alignment of the processor's large pages.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// A slice of zeroed `T`, on large pages where the system has them: with 4 KB pages, a random look-up in some megabytes
/// usually misses the processor's cache of page addresses (TLB). Memory is used only when it is first written.
pub struct LargeSlice<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    Mapped {
        map: MmapMut,
        start: usize,
        end: usize,
    },
    /// A small slice, or any slice where the system maps no memory.
    Heap(Vec<T>),
}

impl<T: Pod> LargeSlice<T> {
    /// Creates a slice of `len` values with all bits zero.
    pub fn new(len: usize) -> Self {
        let num_bytes = len * size_of::<T>();
        // The last large page must be mapped in full, and uses memory only as far as it is written.
        let num_mapped = num_bytes.next_multiple_of(LARGE_PAGE_BYTES) + LARGE_PAGE_BYTES;
        let map = (num_bytes >= LARGE_PAGE_BYTES / 2).then(|| MmapMut::map_anon(num_mapped));
        let memory = match map {
            Some(Ok(map)) => {
                #[cfg(target_os = "linux")]
                // This is only advice: without it everything works, somewhat slower.
                let _ = map.advise(memmap2::Advice::HugePage);
                let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES).min(LARGE_PAGE_BYTES);
                Memory::Mapped { map, start, end: start + num_bytes }
            }
            _ => Memory::Heap(vec![T::zeroed(); len]),
        };
        Self { memory }
    }

    /// All values of the slice.
    #[inline]
    pub fn get(&self) -> &[T] {
        match &self.memory {
            Memory::Mapped { map, start, end } => cast_slice(&map[*start..*end]),
            Memory::Heap(items) => items,
        }
    }

    /// All values of the slice, for writing.
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
