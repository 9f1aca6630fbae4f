//! Structs with fields that a caller fills or reads by name.

use crate::Result;

/// A source of values by field name, such as an object of another language.
pub trait Fields<T> {
    /// Returns the value of the field `name`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidArgument`] naming the field if the value is missing or has another type.
    fn field(&self, name: &'static str) -> Result<T>;
}

/// Declares a settings struct once: its fields, their defaults, and `read`, which fills the fields by name.
///
/// `read` keeps the names in Rust equal to those of the caller's struct: after a rename on one side, the first request
/// fails instead of silently using a default. Fields after `own:` are not read; they keep their defaults.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$doc:meta])* pub $field:ident: $kind:ty = $default:expr, )*
            $( own: $( $(#[$own_doc:meta])* pub $own:ident: $own_kind:ty = $own_default:expr, )* )?
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            $( $(#[$doc])* pub $field: $kind, )*
            $( $( $(#[$own_doc])* pub $own: $own_kind, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $( $( $own: $own_default, )* )? }
            }
        }

        impl $name {
            /// Fills each field from the value of the same name in `source`.
            ///
            /// # Errors
            ///
            /// [`crate::Error::InvalidArgument`] naming the first field that is missing or has another type.
            pub fn read<S>(source: &S) -> $crate::Result<Self>
            where
                S: $( $crate::fields::Fields<$kind> + )*
            {
                Ok(Self {
                    $( $field: source.field(stringify!($field))?, )*
                    $( $( $own: $own_default, )* )?
                })
            }
        }
    };
}

/// Declares a struct of counters once: its fields, and `named`, which lists each counter with its name.
macro_rules! counters {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$doc:meta])* pub $field:ident, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$doc])* pub $field: usize, )*
        }

        impl $name {
            /// Lists each counter with its name.
            pub fn named(&self) -> impl IntoIterator<Item = (&'static str, usize)> + use<> {
                [$( (stringify!($field), self.$field), )*]
            }
        }
    };
}

pub(crate) use {counters, settings};
