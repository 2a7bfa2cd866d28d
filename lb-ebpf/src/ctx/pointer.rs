//! Packet pointers out of a context.

/// Loads a packet pointer (`data`, `data_end`) from a context field at a constant offset.
///
/// Written in assembly because LLVM otherwise may move the field's 32-bit value through a 32-bit
/// register, which for the verifier cuts the packet pointer (`R3 invalid mem access 'scalar'`, LLVM 22).
macro_rules! packet_pointer {
    ($ctx:expr, $offset:literal) => {{
        let pointer: usize;
        // SAFETY: the context is valid while the program runs, and the kernel knows the field at this
        // offset; memory is only read.
        unsafe {
            core::arch::asm!(
                concat!("{0} = *(u32 *)({1} + ", $offset, ")"),
                out(reg) pointer,
                in(reg) $ctx,
                options(pure, readonly, nostack),
            )
        }
        pointer
    }};
}
pub(crate) use packet_pointer;
