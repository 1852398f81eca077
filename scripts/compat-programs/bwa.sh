command -v bwa >/dev/null || exit 127
command -v samtools >/dev/null || exit 127
/usr/bin/python3 -c "
import random; random.seed(5); g=''.join(random.choices('ACGT',k=1000000)); open('r.fa','w').write('>c\n'+g+'\n')
with open('q.fq','w') as f:
    for i in range(150000):
        p=random.randrange(len(g)-100); f.write('@q%d\n%s\n+\n%s\n'%(i,g[p:p+50]+random.choice('ACGT')+g[p+51:p+100],'I'*100))"
bwa index r.fa 2>/dev/null; samtools faidx r.fa
bwa mem -t 2 r.fa q.fq 2>/dev/null | samtools sort -@ 2 -m 8M -T t - 2>/dev/null | samtools view - | sha256sum
