command -v blastn >/dev/null && command -v makeblastdb >/dev/null || exit 127
/usr/bin/python3 - <<'P'
import random
random.seed(3); g = [''.join(random.choice('ACGT') for _ in range(60000)) for _ in range(40)]
open('db.fa', 'w').write(''.join(f'>s{i}\n{s}\n' for i, s in enumerate(g)))
def m(s): return ''.join(c if random.random() > .06 else random.choice('ACGT') for c in s)
with open('q.fa', 'w') as f:
    for i in range(120):
        s = random.choice(g); p = random.randrange(59000); f.write(f'>q{i}\n{m(s[p:p+900])}\n')
P
makeblastdb -in db.fa -dbtype nucl -out db >/dev/null; echo $?
blastn -db db -query q.fa -num_threads 2 -word_size 7 -outfmt 6 -evalue 1e-5 | sort | md5sum
