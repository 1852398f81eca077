#!/usr/bin/perl
# Forks workers and reads their pipes; writes to standard output.
# Usage: workers.pl ROUNDS
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
$| = 1;
my ($rounds, $workers) = (shift, 4);
my @pipes;
for my $number (1 .. $workers) {
    pipe(my $reader, my $writer) or die "pipe: $!";
    my $child = fork() // die "fork: $!";
    if (!$child) {
        close $reader;
        close $_->{reader} for @pipes;
        $writer->autoflush(1);
        my ($seed, %seen) = ($number);
        for my $round (1 .. $rounds) {
            for (1 .. 8000) {
                $seed = ($seed * 1103515245 + 12345) % 2147483648;
                $seen{$seed % 1009}++;
            }
            my $text = join ',', map { "$_=$seen{$_}" } sort { $a <=> $b } keys %seen;
            print {$writer} "$number $round $seed " . sha256_hex($text) . "\n";
        }
        exit $number;
    }
    close $writer;
    push @pipes, { reader => $reader, child => $child };
}
my $all = Digest::SHA->new(256);
for my $round (1 .. $rounds) {
    for my $pipe (@pipes) {
        my $line = readline($pipe->{reader}) // die "worker ended early";
        $all->add($line);
        print $line;
    }
}
for my $pipe (@pipes) {
    waitpid $pipe->{child}, 0;
    print 'exit ', $? >> 8, "\n";
}
print 'all ', $all->hexdigest, "\n";
