//! Sets of flags in a map's value: a type for each, so that no entry takes another's flags.

/// Declares a set of flags: a transparent type over an integer, one bit a constant.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident: $bits:ident { $($(#[$doc:meta])+ $flag:ident = $bit:expr,)+ }) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name {
            bits: $bits,
        }

        impl $name {
            $($(#[$doc])+ pub const $flag: $name = $name { bits: $bit };)+
            /// No flag.
            pub const NONE: $name = $name { bits: 0 };

            /// As the integer that lies in memory.
            #[inline(always)]
            pub const fn bits(self) -> $bits {
                self.bits
            }
            /// The set that this integer holds.
            #[inline(always)]
            pub const fn from_bits(bits: $bits) -> $name {
                $name { bits }
            }
            /// Whether all of `flags` are set.
            #[inline(always)]
            pub const fn contains(self, flags: $name) -> bool {
                self.bits & flags.bits == flags.bits
            }
            /// Whether any of `flags` is set.
            #[inline(always)]
            pub const fn intersects(self, flags: $name) -> bool {
                self.bits & flags.bits != 0
            }
            /// All but `flags`.
            #[inline(always)]
            #[must_use]
            pub const fn without(self, flags: $name) -> $name {
                $name { bits: self.bits & !flags.bits }
            }
            /// What `|` does, in a constant.
            #[inline(always)]
            #[must_use]
            pub const fn union(self, flags: $name) -> $name {
                $name { bits: self.bits | flags.bits }
            }
        }

        impl core::ops::BitOr for $name {
            type Output = $name;
            #[inline(always)]
            fn bitor(self, flags: $name) -> $name {
                self.union(flags)
            }
        }

        impl core::ops::BitOrAssign for $name {
            #[inline(always)]
            fn bitor_assign(&mut self, flags: $name) {
                *self = self.union(flags);
            }
        }

        impl core::ops::BitAnd for $name {
            type Output = $name;
            #[inline(always)]
            fn bitand(self, flags: $name) -> $name {
                $name { bits: self.bits & flags.bits }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let mut rest = *self;
                let mut between = "";
                $(
                    if self.contains($name::$flag) {
                        write!(f, "{between}{}", stringify!($flag))?;
                        between = " | ";
                        rest = rest.without($name::$flag);
                    }
                )+
                if rest != $name::NONE || between.is_empty() {
                    write!(f, "{between}{:#x}", rest.bits)?;
                }
                Ok(())
            }
        }
    };
}
pub(crate) use flags;

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use crate::abi::FlowFlags;

    #[test]
    fn a_set_shows_its_flags_by_name() {
        let flags = FlowFlags::SNAT | FlowFlags::FIN;
        assert_eq!(format!("{flags:?}"), "SNAT | FIN");
        assert_eq!(format!("{:?}", FlowFlags::NONE), "0x0");
        assert!(flags.contains(FlowFlags::SNAT) && !flags.contains(FlowFlags::CLOSING));
        assert_eq!(flags.without(FlowFlags::CLOSING), FlowFlags::SNAT);
        assert_eq!(flags & FlowFlags::CLOSING, FlowFlags::FIN);
        assert!(!flags.intersects(FlowFlags::RST | FlowFlags::DIRECT));
    }
}
