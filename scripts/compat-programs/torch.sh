/usr/bin/python3 -c "import torch" 2>/dev/null || exit 127
cat > a.py <<T
import torch
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(1); torch.set_num_threads(2)
class D(Dataset):
    def __len__(self): return 800
    def __getitem__(self,i):
        g=torch.Generator().manual_seed(i); x=torch.randn(64,generator=g)
        for _ in range(60): x=x*1.0001
        return x,(x.sum()>0).long()
if __name__=='__main__':
    m=torch.nn.Sequential(torch.nn.Linear(64,512),torch.nn.ReLU(),torch.nn.Linear(512,512),torch.nn.ReLU(),torch.nn.Linear(512,2)); o=torch.optim.SGD(m.parameters(),.05)
    for e in range(4):
        s=0
        for x,y in DataLoader(D(),batch_size=20,num_workers=2):
            o.zero_grad(); l=torch.nn.functional.cross_entropy(m(x),y); l.backward(); o.step(); s+=l.item()
        print(e,'%.4f'%s,flush=True)
T
/usr/bin/python3 a.py 2>&1
