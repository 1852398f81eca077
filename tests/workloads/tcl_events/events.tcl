#!/usr/bin/tclsh
# An event loop with timers and a file event on a child's pipe.
# Usage: events.tcl ROUNDS OUTPUT
lassign $argv rounds output
set out [open $output w]
fconfigure $out -buffering line
set seed 1
set round 0
set lines 0
set sum 0

proc tick {} {
    global rounds round seed out
    for {set i 0} {$i < 8000} {incr i} {
        set seed [expr {($seed * 1103515245 + 12345) & 0x7fffffff}]
    }
    incr round
    puts $out "tick $round $seed"
    if {$round < $rounds} { after 2 tick } else { set ::ticked 1 }
}

proc readable {pipe} {
    global lines sum
    # A few lines for each event, so that the loop stays busy to the end.
    for {set i 0} {$i < 40} {incr i} {
        if {[gets $pipe line] < 0} {
            if {[eof $pipe]} {
                fileevent $pipe readable {}
                set ::drained 1
            }
            return
        }
        incr lines
        set sum [expr {($sum * 31 + $line) % 1000000007}]
    }
}

set pipe [open "|sh -c {seq 1 [expr {$rounds * 80}]}" r]
fconfigure $pipe -blocking 0
fileevent $pipe readable [list readable $pipe]
after 1 tick
vwait ticked
if {![info exists drained]} { vwait drained }
puts $out "read $lines lines, sum $sum"
fconfigure $pipe -blocking 1
close $pipe
close $out
