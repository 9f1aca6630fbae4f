//! Tables that look-ups hit at random.

use std::marker::PhantomData;

use bytemuck::{Pod, bytes_of_mut, from_bytes_mut};
use memmap2::MmapMut;

/// Where the processor's large pages begin.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// One `T` of zeros, on large pages where the system has them: with 4 KB pages a look-up in 2 MB rarely finds its page's
/// address in the processor's cache. Memory is used when it is first written to.
pub struct ZeroedMemory<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    Mapped {
        map: MmapMut,
        start: usize,
        kind: PhantomData<T>,
    },
    /// Where the system maps no memory.
    Heap(Box<T>),
}

impl<T: Pod> ZeroedMemory<T> {
    /// All bits zero.
    pub fn new() -> Self {
        let memory = match MmapMut::map_anon(size_of::<T>() + LARGE_PAGE_BYTES) {
            Ok(map) => {
                #[cfg(target_os = "linux")]
                // Only advice: without it everything works, somewhat slower.
                let _ = map.advise(memmap2::Advice::HugePage);
                let start = map.as_ptr().align_offset(LARGE_PAGE_BYTES);
                Memory::Mapped { map, start, kind: PhantomData }
            }
            Err(_) => Memory::Heap(bytemuck::zeroed_box()),
        };
        Self { memory }
    }

    /// The table.
    #[inline]
    pub fn get(&mut self) -> &mut T {
        let bytes = match &mut self.memory {
            Memory::Mapped { map, start, .. } => &mut map[*start..*start + size_of::<T>()],
            Memory::Heap(value) => bytes_of_mut(&mut **value),
        };
        from_bytes_mut(bytes)
    }
}
