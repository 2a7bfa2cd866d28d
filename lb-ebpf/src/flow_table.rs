//! The record table over the kernel's arrays: what is short is inlined, the rest are functions that the verifier walks
//! once, whoever calls them: global ones, whose arguments are numbers and memory of a known size.

use lb_common::flow_table::{
    self as table, Change, Class, Derived, Geometry, Insert, Memory, RecordCells, RecordNumber,
    Room, Tuple,
};
use lb_common::{V4, V6};

use crate::arrays::FlowArrays;
use crate::cells::{Place, opaque};

/// The tables of both families.
#[derive(Clone, Copy)]
pub(crate) struct FlowTable;

/// What a global function was given: a place of which the verifier knows the size.
#[inline(always)]
pub(crate) fn given<'a, T>(place: *const T) -> Option<&'a T> {
    if place.is_null() {
        return None;
    }
    // SAFETY: not null, and the verifier knows it as memory of this size.
    Some(unsafe { &*place })
}

/// The record at such a place.
#[inline(always)]
fn given_record<W>(words: *const W) -> Option<Place> {
    given(words).map(|_| Place::new(words.cast_mut()))
}

/// The functions of one family.
pub(crate) trait FlowFunctions: FlowArrays {
    fn add_derived(words: *const Self::Words, kind: Derived, number: RecordNumber) -> u32;
    fn remove_derived(words: *const Self::Words, kind: Derived, number: RecordNumber);
    fn way_of_record(bucket: u32, words: *const Self::Words) -> u32;
    fn touch(words: *const Self::Words);
    fn make_room(index: u32, keep_reserved: u32) -> u32;
    fn way_of(bucket: u32, tuple: &Tuple<Self>) -> u32;
    fn insert(words: &Self::Words, now: u32) -> Room;
    fn change(original: &Tuple<Self>, change: Change, now: u32) -> bool;
    fn delete(original: &Tuple<Self>) -> bool;
    fn delete_seen(number: u32, check: u32, stamp: u32) -> bool;
    fn sweep(line: u32, now: u32, age: u32) -> u32;
    fn halve(original: &Tuple<Self>) -> Insert;
    fn is_free(words: &Self::Words, now: u32, age: u32) -> bool;
    fn reserve(tuple: &Tuple<Self>, now: u32);
}

impl<F: FlowFunctions> Memory<F> for FlowTable {
    type Record = Place;
    type Bucket = Place;
    type Line = Place;

    #[inline(always)]
    fn geometry(&self) -> Geometry {
        F::geometry()
    }
    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<Place> {
        F::bucket(index)
    }
    #[inline(always)]
    fn line(&self, index: u32) -> Option<Place> {
        F::line(index)
    }
    #[inline(always)]
    fn opaque(value: u64) -> u64 {
        opaque(value)
    }
    #[inline(always)]
    fn add_derived<C: RecordCells<F>>(
        &self,
        record: C,
        kind: Derived,
        number: RecordNumber,
    ) -> Insert {
        Insert::from_number(F::add_derived(record.address(), kind, number))
    }
    #[inline(always)]
    fn remove_derived<C: RecordCells<F>>(&self, record: C, kind: Derived, number: RecordNumber) {
        F::remove_derived(record.address(), kind, number);
    }
    #[inline(always)]
    fn way_of_record<C: RecordCells<F>>(&self, bucket: u32, record: C) -> u32 {
        opaque(F::way_of_record(bucket, record.address()) as u64) as u32
    }
    #[inline(always)]
    fn touch<C: RecordCells<F>>(&self, record: C) {
        F::touch(record.address());
    }
    #[inline(always)]
    fn make_room(&self, index: u32, keep_reserved: bool) -> u32 {
        // Opaque: the compiler knows the bodies of functions that it does not inline, too.
        opaque(F::make_room(index, keep_reserved as u32) as u64) as u32
    }
    #[inline(always)]
    fn way_of(&self, bucket: u32, tuple: &Tuple<F>) -> u32 {
        opaque(F::way_of(bucket, tuple) as u64) as u32
    }
    #[inline(always)]
    fn delete_seen(&self, number: RecordNumber, check: u32, stamp: u32) -> bool {
        F::delete_seen(number.0, check, stamp)
    }
}

macro_rules! functions {
    ($family:ty, $words:ty, $add_derived:ident, $remove_derived:ident, $make_room:ident, $way_of:ident,
     $insert:ident, $change:ident, $delete:ident, $delete_seen:ident, $sweep:ident, $halve:ident, $is_free:ident,
     $reserve:ident, $touch:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $add_derived(words: *const $words, kind: u32, number: u32) -> u32 {
            let Some(record) = given_record(words) else {
                return Insert::Full as u32;
            };
            let kind = Derived::from_bits(kind);
            let tuple = RecordCells::<$family>::derived(record, kind);
            table::add_entry(&FlowTable, &tuple, kind, RecordNumber(number)) as u32
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $remove_derived(words: *const $words, kind: u32, number: u32) -> u32 {
            if let Some(record) = given_record(words) {
                let kind = Derived::from_bits(kind);
                let tuple = RecordCells::<$family>::derived(record, kind);
                table::remove_entry(&FlowTable, &tuple, kind, RecordNumber(number));
            }
            0
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $touch(words: *const $words) -> u32 {
            if let Some(record) = given_record(words) {
                table::touch::<$family, _, _>(&FlowTable, record);
            }
            0
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $make_room(index: u32, keep_reserved: u32) -> u32 {
            table::make_room::<$family, _>(&FlowTable, index, keep_reserved != 0)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $way_of(tuple: *const Tuple<$family>, bucket: u32) -> u32 {
            match given(tuple) {
                Some(tuple) => table::way_of(&FlowTable, bucket, tuple),
                None => u32::MAX,
            }
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $insert(words: *const $words, now: u32) -> u32 {
            let Some(record) = given_record(words) else {
                return Insert::Full as u32;
            };
            let room = table::insert::<$family, _, _>(&FlowTable, record, now);
            room.result as u32 | ((room.evicted as u32) << 8)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $change(
            original: *const Tuple<$family>,
            what: u64,
            hop: u64,
            now: u32,
        ) -> u32 {
            let Some(original) = given(original) else {
                return 0;
            };
            table::change(&FlowTable, original, Change { what, hop }, now) as u32
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $delete(original: *const Tuple<$family>) -> u32 {
            match given(original) {
                Some(original) => table::delete(&FlowTable, original) as u32,
                None => 0,
            }
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $delete_seen(number: u32, check: u32, stamp: u32) -> u32 {
            table::delete_seen::<$family, _>(&FlowTable, RecordNumber(number), check, stamp) as u32
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $sweep(line: u32, now: u32, age: u32) -> u32 {
            table::sweep::<$family, _>(&FlowTable, line, now, age)
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $halve(original: *const Tuple<$family>) -> u32 {
            match given(original) {
                Some(original) => table::halve(&FlowTable, original) as u32,
                None => Insert::Full as u32,
            }
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $is_free(words: *const $words, now: u32, age: u32) -> u32 {
            let Some(record) = given_record(words) else {
                return 0;
            };
            let reply = RecordCells::<$family>::derived(record, Derived::Reply);
            table::is_free(&FlowTable, &reply, now, age) as u32
        }
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reserve(tuple: *const Tuple<$family>, now: u32) -> u32 {
            match given(tuple) {
                Some(tuple) => table::reserve(&FlowTable, tuple, now) as u32,
                None => Insert::Full as u32,
            }
        }

        impl FlowFunctions for $family {
            #[inline(always)]
            fn add_derived(words: *const Self::Words, kind: Derived, number: RecordNumber) -> u32 {
                $add_derived(words, kind as u32, number.0)
            }
            #[inline(always)]
            fn remove_derived(words: *const Self::Words, kind: Derived, number: RecordNumber) {
                $remove_derived(words, kind as u32, number.0);
            }
            #[inline(always)]
            fn way_of_record(bucket: u32, words: *const Self::Words) -> u32 {
                // A record begins with its original tuple.
                $way_of(words.cast(), bucket)
            }
            #[inline(always)]
            fn touch(words: *const Self::Words) {
                $touch(words);
            }
            #[inline(always)]
            fn make_room(index: u32, keep_reserved: u32) -> u32 {
                $make_room(index, keep_reserved)
            }
            #[inline(always)]
            fn way_of(bucket: u32, tuple: &Tuple<Self>) -> u32 {
                $way_of(tuple, bucket)
            }
            #[inline(always)]
            fn insert(words: &Self::Words, now: u32) -> Room {
                let result = $insert(words, now);
                Room {
                    // No more bits than it has: the compiler may make an index of it.
                    result: Insert::from_number(result & 7),
                    evicted: Class::from_bits(result >> 8),
                }
            }
            #[inline(always)]
            fn change(original: &Tuple<Self>, change: Change, now: u32) -> bool {
                $change(original, change.what, change.hop, now) != 0
            }
            #[inline(always)]
            fn delete(original: &Tuple<Self>) -> bool {
                $delete(original) != 0
            }
            #[inline(always)]
            fn delete_seen(number: u32, check: u32, stamp: u32) -> bool {
                $delete_seen(number, check, stamp) != 0
            }
            #[inline(always)]
            fn sweep(line: u32, now: u32, age: u32) -> u32 {
                $sweep(line, now, age)
            }
            #[inline(always)]
            fn halve(original: &Tuple<Self>) -> Insert {
                Insert::from_number($halve(original))
            }
            #[inline(always)]
            fn is_free(words: &Self::Words, now: u32, age: u32) -> bool {
                $is_free(words, now, age) != 0
            }
            #[inline(always)]
            fn reserve(tuple: &Tuple<Self>, now: u32) {
                $reserve(tuple, now);
            }
        }
    };
}

functions!(
    V4,
    [u64; 8],
    flow_add_derived_v4,
    flow_remove_derived_v4,
    flow_make_room_v4,
    flow_way_of_v4,
    flow_insert_v4,
    flow_change_v4,
    flow_delete_v4,
    flow_delete_seen_v4,
    flow_sweep_v4,
    flow_halve_v4,
    flow_is_free_v4,
    flow_reserve_v4,
    flow_touch_v4
);
functions!(
    V6,
    [u64; 16],
    flow_add_derived_v6,
    flow_remove_derived_v6,
    flow_make_room_v6,
    flow_way_of_v6,
    flow_insert_v6,
    flow_change_v6,
    flow_delete_v6,
    flow_delete_seen_v6,
    flow_sweep_v6,
    flow_halve_v6,
    flow_is_free_v6,
    flow_reserve_v6,
    flow_touch_v6
);
