//! Against values computed with 600 bits by an arbitrary-precision library: every one correctly rounded.

#![allow(clippy::unwrap_used)]

use crate::isa::sse::testing::Machine;
use crate::vcpu::fpu::{INDEFINITE, Raw80, sw};
use iced_x86::code_asm::CodeAssembler;

type Emit = fn(&mut CodeAssembler);
const F2XM1: Emit = |a| a.f2xm1().unwrap();
const FSIN: Emit = |a| a.fsin().unwrap();
const FCOS: Emit = |a| a.fcos().unwrap();
/// FPTAN and the removal of its second result.
const FTAN: Emit = |a| {
    a.fptan().unwrap();
    a.fstp(iced_x86::code_asm::st0).unwrap();
};
const FPATAN: Emit = |a| a.fpatan().unwrap();
const FYL2X: Emit = |a| a.fyl2x().unwrap();
const FYL2XP1: Emit = |a| a.fyl2xp1().unwrap();
const FPTAN: Emit = |a| a.fptan().unwrap();
const FSINCOS: Emit = |a| a.fsincos().unwrap();

/// (instruction, ST(0), ST(1), result rounded to nearest)
#[rustfmt::skip]
const VECTORS: &[(Emit, Raw80, Raw80, Raw80)] = &[
    (F2XM1, (0x934f069bf2a74de4, 0xbfeb), (0x8000000000000000, 0x3fff), (0xcc369003b75f82f5, 0xbfea)),
    (FSIN, (0xe91f8412128b2f33, 0x3fe7), (0x8000000000000000, 0x3fff), (0xe91f8412128aae52, 0x3fe7)),
    (FCOS, (0x876c823a9531985d, 0x400f), (0x8000000000000000, 0x3fff), (0xf4014c749c41382b, 0xbffd)),
    (FTAN, (0x8b0051ad099950d8, 0xc002), (0x8000000000000000, 0x3fff), (0xe8709c14976f56b4, 0x3ffe)),
    (FPATAN, (0x8b9c7bec3d9c1724, 0x3fef), (0xc860c967d3ac94af, 0xbfee), (0x9f5981c59de7787c, 0xbffe)),
    (FYL2X, (0xd04fbb5aa170b338, 0x3fd4), (0x87eb1878f29d0da9, 0x4003), (0xb3a7f11249cc2a98, 0xc008)),
    (FYL2X, (0xfcf5ed660cb1e29c, 0x4000), (0xc740cb9f0becd7b0, 0x3ffd), (0xc589557fb6c1ac87, 0x3ffe)),
    (FYL2XP1, (0x9276f3526b4cb242, 0x3fd5), (0xc7b682ac4ef8aa38, 0x4003), (0xa4d81b328805d1c8, 0x3fda)),
    (F2XM1, (0xca71dfc81a61dbe2, 0x3fe2), (0x8000000000000000, 0x3fff), (0x8c52f5659d951146, 0x3fe2)),
    (FSIN, (0x8c789ae95f557203, 0x3ff9), (0x8000000000000000, 0x3fff), (0x8c76d7c79eaa7e5c, 0x3ff9)),
    (FCOS, (0x87a102da907a70c3, 0x3fe9), (0x8000000000000000, 0x3fff), (0xfffffffffff70499, 0x3ffe)),
    (FTAN, (0xc40f68b1ae2eb154, 0xc014), (0x8000000000000000, 0x3fff), (0xa5c17ec2fae3f61c, 0x3ffa)),
    (FPATAN, (0xcaf3b0e87731af10, 0x3fff), (0x9fcc713b4cbd87ad, 0x4002), (0xb4e8ca9bd53f5e2d, 0x3fff)),
    (FYL2X, (0x9f3e8dfdc7a2ea20, 0x404d), (0xa66e902a930d6eaf, 0x3ffb), (0xcba884be97da7e68, 0x4001)),
    (FYL2X, (0xb973661dbabced20, 0x3fff), (0xfd765e9c9be4bcfc, 0xbffe), (0x87933b87dda3bf93, 0xbffe)),
    (FYL2XP1, (0x951d7a6a6b0a18e8, 0x3fe3), (0xbe9657c1eeeacbe2, 0xbffc), (0xa0289988cedcd591, 0xbfe1)),
    (F2XM1, (0xc76f06bdc3baea9e, 0x3fdb), (0x8000000000000000, 0x3fff), (0x8a3ca5c642ad9044, 0x3fdb)),
    (FSIN, (0xd8ff704757124242, 0xc009), (0x8000000000000000, 0x3fff), (0xf7e1ab5a8d316e6c, 0xbffe)),
    (FCOS, (0xe6008e6e9474031b, 0xc020), (0x8000000000000000, 0x3fff), (0xd116abde158752e0, 0x3ffe)),
    (FTAN, (0xa28d5ec0f1d69ed6, 0xbffa), (0x8000000000000000, 0x3fff), (0xa2a33aed940b3ca4, 0xbffa)),
    (FPATAN, (0xdd96a1070f88080b, 0x3fef), (0xd732c799fe3b890b, 0x400f), (0xc90fdaa19d9bc15c, 0x3fff)),
    (FYL2X, (0xb1619d27b774eb52, 0x3fe3), (0x82e3578358d5563d, 0x4004), (0xe1341536b7b942af, 0xc008)),
    (FYL2X, (0xce329c9c2b0537e6, 0x3fff), (0x878bd1807e62aa0a, 0xbffb), (0xba7aee3df2b61dc3, 0xbffa)),
    (FYL2XP1, (0xde82b0f3211c70cf, 0xbfd5), (0xef8ac158eab477d2, 0xc000), (0x96304467ff742981, 0x3fd8)),
    (F2XM1, (0xb369143b72fdf202, 0x3fe1), (0x8000000000000000, 0x3fff), (0xf8b7392a59b8b17b, 0x3fe0)),
    (FSIN, (0xb71b5558d1bc52d9, 0x3ff2), (0x8000000000000000, 0x3fff), (0xb71b554934d8f445, 0x3ff2)),
    (FCOS, (0xb5286fa6b4d66a3a, 0x4004), (0x8000000000000000, 0x3fff), (0x85687bb7d454ccb5, 0x3ffd)),
    (FTAN, (0x9d8943fff52ddf5d, 0xc00d), (0x8000000000000000, 0x3fff), (0xc0e3f042277425b0, 0x4000)),
    (FPATAN, (0x9db0c33b26bb7dbd, 0x3ff6), (0xea6146177c26847f, 0x3feb), (0xbe40077b655c86de, 0x3ff4)),
    (FYL2X, (0x808623ac482c9cbc, 0x3fde), (0xc46d7a006b4013ef, 0xbffc), (0xca87a2d8446697e8, 0x4001)),
    (FYL2X, (0x90101b13f3fe39c0, 0x3fff), (0xcf0d477af341e07a, 0x4002), (0x8d414c5b8c50b2d9, 0x4000)),
    (FYL2XP1, (0xba734d2e0dd27a65, 0x3ff2), (0xc7963764cc4169a3, 0xc004), (0xd1b249c3fe1ec311, 0xbff8)),
    (F2XM1, (0x8d40b41664e50cad, 0xbff0), (0x8000000000000000, 0x3fff), (0xc3d0cb521d6a2c1c, 0xbfef)),
    (FSIN, (0x9865e4be0fef7928, 0xc014), (0x8000000000000000, 0x3fff), (0xffcd99d07384b0c9, 0xbffe)),
    (FCOS, (0x94c659d270ccec31, 0xbffb), (0x8000000000000000, 0x3fff), (0xff532793ade7bd15, 0x3ffe)),
    (FTAN, (0x8d1ac6500d75985d, 0xc01b), (0x8000000000000000, 0x3fff), (0xbba4e65465cd6f95, 0x3fff)),
    (FPATAN, (0x8cfcc8ce895fd7b3, 0x3ff4), (0x890019ce068739fa, 0x4012), (0xc90fdaa012823e77, 0x3fff)),
    (FYL2X, (0x9303b3ce6050914a, 0x4038), (0xfa4cc6be4093f6de, 0xc004), (0xdfb46ed2fa83167f, 0xc00a)),
    (FYL2X, (0x8fb94b557961fd92, 0x3fff), (0xbe790392d953ee26, 0x3ffb), (0xfeb544e4465c0582, 0x3ff8)),
    (FYL2XP1, (0xbdee4b457afb2c68, 0xbfe0), (0xdff550aa1a28f7b3, 0xbffc), (0xefb7501fcce1323e, 0x3fde)),
    (F2XM1, (0xea17eedd7a86f7a2, 0x3fe7), (0x8000000000000000, 0x3fff), (0xa242e1211c76917c, 0x3fe7)),
    (FSIN, (0x9a447c3b05e999f3, 0x4023), (0x8000000000000000, 0x3fff), (0x9b04ee4cbb080945, 0xbffe)),
    (FCOS, (0x92c3df355c9bcf35, 0x4024), (0x8000000000000000, 0x3fff), (0xfedd8c467e5dd38f, 0xbffe)),
    (FTAN, (0xc3991712c215a82a, 0xbff6), (0x8000000000000000, 0x3fff), (0xc3993d22ad0b81d0, 0xbff6)),
    (FPATAN, (0xec37a07bb239f3c7, 0xbff0), (0x9561a223e883a1d4, 0xc002), (0xc9100d3c2b1bcc13, 0xbfff)),
    (FYL2X, (0xc55212468857f9a4, 0x3fd4), (0xd176edde5464ecc2, 0xc002), (0x8ab0bfae99f87e23, 0x4008)),
    (FYL2X, (0x9ea44152ce5b2a92, 0x3ffe), (0xe6d3637ebd685167, 0xc000), (0x9f5b1187dd0330f2, 0x4000)),
    (FYL2XP1, (0xad8312c77e26f36a, 0x3fe4), (0xa3c3fc9dca44eb86, 0xbffa), (0xa0229a25c85a06f7, 0xbfe0)),
    (F2XM1, (0xcd753214b1491e24, 0x3fe3), (0x8000000000000000, 0x3fff), (0x8e699911fb55f54b, 0x3fe3)),
    (FSIN, (0xf7f04f83cefe2a1f, 0x401a), (0x8000000000000000, 0x3fff), (0x9765c3cd1b36541b, 0x3ffe)),
    (FCOS, (0xfcbce825f47aebdd, 0xc00d), (0x8000000000000000, 0x3fff), (0xc636b46430aea8dd, 0xbffb)),
    (FTAN, (0x9d0948be1a26f889, 0xc003), (0x8000000000000000, 0x3fff), (0xfd3d4ec880feb562, 0xbffe)),
    (FPATAN, (0xbdc7955a3451d013, 0x4000), (0x803e881ad726c86b, 0xc012), (0xc90fab475e630b4e, 0xbfff)),
    (FYL2X, (0xe65ab9ec5810d60e, 0x4042), (0xead5c5a615b40aeb, 0x4004), (0xf8f414fb7db38fe1, 0x400a)),
    (FYL2X, (0xdb1233b8c8450070, 0x4000), (0xf1cb1cdf7a605a91, 0xbffd), (0xd69f5dcbd598cd06, 0xbffe)),
    (FYL2XP1, (0xaa8fec7ca2c68e45, 0xbff5), (0xb360a4a77691b06f, 0x4000), (0xac880859e8903e5d, 0xbff7)),
    (F2XM1, (0x94556528b98c67c2, 0xbfdc), (0x8000000000000000, 0x3fff), (0xcda24db6e6a0f744, 0xbfdb)),
    (FSIN, (0x9358e7fe070d7109, 0x3ff1), (0x8000000000000000, 0x3fff), (0x9358e7fbfe5e066f, 0x3ff1)),
    (FCOS, (0xd3f3294dce76e9f4, 0xc01c), (0x8000000000000000, 0x3fff), (0xf26cb767ffba131d, 0xbffe)),
    (FTAN, (0xbcb7ba56faf55496, 0x401b), (0x8000000000000000, 0x3fff), (0x909bf6761e749f8c, 0x3ffe)),
    (FPATAN, (0xc63a7e0f27e9e06f, 0x4001), (0xe651549503a56cc1, 0x3fec), (0x94b87b2aaa015c41, 0x3fea)),
    (FYL2X, (0xc36701fc1a4f44f9, 0x4041), (0xfe4740596f0e2289, 0x3ffc), (0x84531cfd233a6b24, 0x4003)),
    (FYL2X, (0xa03c1f85072a98d2, 0x3ffe), (0xc02612eb4affdcd1, 0xbffd), (0x81e250d0071cde6f, 0x3ffd)),
    (FYL2XP1, (0xa132dd9853740902, 0x3fe8), (0xf47b705e0f977044, 0x3ffc), (0xde18e882dee952e1, 0x3fe6)),
    (F2XM1, (0xcaab2c2fa997f351, 0x3ff4), (0x8000000000000000, 0x3fff), (0x8c844ffdfcd7b0a7, 0x3ff4)),
    (FSIN, (0xe9dfb6806bae4b5b, 0x4023), (0x8000000000000000, 0x3fff), (0xfbbacdf6812d538b, 0x3ffe)),
    (FCOS, (0xc412d72b2179b37d, 0xc021), (0x8000000000000000, 0x3fff), (0xd6cc8e2ae59e3a5c, 0xbffe)),
    (FTAN, (0xefb8180b04c9d78d, 0xc015), (0x8000000000000000, 0x3fff), (0x8f222ea97685ed59, 0xbffd)),
    (FPATAN, (0x8080dc089bca3cb7, 0x3ff6), (0x921e9ab82c1eea1f, 0xbff4), (0x8dce6eaa2c951657, 0xbffd)),
    (FYL2X, (0xc73a97ef1ece615d, 0x4054), (0xd756a258537390e5, 0x3ffa), (0x90126c97cde3612f, 0x4001)),
    (FYL2X, (0xe3640715c8c614b2, 0x4000), (0xc7b7c8afe21b37ca, 0xbffb), (0xb6a51dcc41b583ec, 0xbffc)),
    (FYL2XP1, (0x8566c5f046e40990, 0x3fcf), (0xc7e6bfa073c1cd2c, 0xc002), (0x96488a6432a03c67, 0xbfd3)),
    (F2XM1, (0xa9adb5217178ba0a, 0x3fdb), (0x8000000000000000, 0x3fff), (0xeb3972f3515347d9, 0x3fda)),
    (FSIN, (0xc18e81df9b2bd6c0, 0xc021), (0x8000000000000000, 0x3fff), (0xf68b92a3f409c8dd, 0xbffe)),
    (FCOS, (0xc10b42c773ccef03, 0x4004), (0x8000000000000000, 0x3fff), (0xd7273f8d3ec4515e, 0xbffd)),
    (FTAN, (0xf8831be781fc069e, 0xc013), (0x8000000000000000, 0x3fff), (0xfc7c418bb603a0d7, 0x3ffc)),
    (FPATAN, (0xf02000aee064a114, 0x400c), (0xc79e25f1ec3b9605, 0x3ffb), (0xd4d0949763bcd279, 0x3fed)),
    (FYL2X, (0xb9489aded70a39d1, 0x3fce), (0x8f914ee86aa8b9e0, 0xbffc), (0xd971a6cf5fdb772e, 0x4001)),
    (FYL2X, (0xd5e86bfd12926185, 0x3fff), (0x895c05766da79a87, 0xbffd), (0xcb863eaebaea92bb, 0xbffc)),
    (FYL2XP1, (0x8fa92932c8b007ee, 0x3fd6), (0xdba9d0f7f0836085, 0x3ffc), (0xb1d723c46c11020b, 0x3fd4)),
    (F2XM1, (0xa065d668249a4584, 0x3fee), (0x8000000000000000, 0x3fff), (0xde5bfb80aba7ca40, 0x3fed)),
    (FSIN, (0xdf9347503836e865, 0x401c), (0x8000000000000000, 0x3fff), (0xa85171bea7670403, 0xbffe)),
    (FCOS, (0xbe5e8fade28af604, 0xc013), (0x8000000000000000, 0x3fff), (0xde875edce10d60b0, 0x3ffe)),
    (FTAN, (0xda68cf602955d6f0, 0xc003), (0x8000000000000000, 0x3fff), (0xbc0c5475b760067e, 0x3fff)),
    (FPATAN, (0xab68286667601367, 0xc00b), (0x8bcd038f518ae452, 0x4001), (0xc902cde730ac3a23, 0x4000)),
    (FYL2X, (0xc6eb1e5c5685d624, 0x3f9f), (0xda00dd4270c1dca1, 0xc001), (0xa26b555e62d48ec0, 0x4008)),
    (FYL2X, (0xcfdcd7a884768b8c, 0x3fff), (0xfafaaa7683239ef5, 0xbffe), (0xaf8e7ee9e51e4369, 0xbffe)),
    (FYL2XP1, (0xfc60887d3a828159, 0x3ff5), (0xa2ce4a2e43fc0527, 0xbffb), (0xe7551e2a63f16a4d, 0xbff2)),
    (F2XM1, (0xe0bd4931453bf491, 0xbfe2), (0x8000000000000000, 0x3fff), (0x9bc708ed42e004a8, 0xbfe2)),
    (FSIN, (0xf4a93534d97e967b, 0x4017), (0x8000000000000000, 0x3fff), (0xd9c2470740b1676f, 0xbffd)),
    (FCOS, (0x931e7d2f67ec326a, 0x4002), (0x8000000000000000, 0x3fff), (0xf944acc195123814, 0xbffe)),
    (FTAN, (0xbf4f728e9212824c, 0x4015), (0x8000000000000000, 0x3fff), (0xfaeace1834c35569, 0x3ffe)),
    (FPATAN, (0x875d07544770a087, 0x3ff0), (0xf298b4b06ce193c2, 0xbff6), (0xc7f22d4252e36c1c, 0xbfff)),
    (FYL2X, (0x8b5620c8a26aa0ae, 0x3f9f), (0xcdd8c1f01570266b, 0x3ffe), (0x9a302a4122818573, 0xc005)),
    (FYL2X, (0xee6f690243b30f66, 0x3ffd), (0x817a59a1742a8063, 0xbffb), (0x8ec16544d4e9eaf4, 0x3ffb)),
    (FYL2XP1, (0xf69d19546af25748, 0x3fe6), (0x8587c39d2114e068, 0x4003), (0xb9948780a8171b05, 0x3feb)),
    (FSIN, (0xc90fdaa22168c235, 0x3fff), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0x3fff)),
    (FCOS, (0xc90fdaa22168c235, 0x3fff), (0x8000000000000000, 0x3fff), (0xece675d1fc8f8cbb, 0xbfbd)),
    (FTAN, (0xc90fdaa22168c235, 0x3fff), (0x8000000000000000, 0x3fff), (0x8a51e04daabda35f, 0xc040)),
    (FSIN, (0xc90fdaa22168c235, 0x4000), (0x8000000000000000, 0x3fff), (0xece675d1fc8f8cbb, 0xbfbe)),
    (FCOS, (0xc90fdaa22168c235, 0x4000), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0xbfff)),
    (FTAN, (0xc90fdaa22168c235, 0x4000), (0x8000000000000000, 0x3fff), (0xece675d1fc8f8cbb, 0x3fbe)),
    (FSIN, (0x96cbe3f9990e91a8, 0x4001), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0xbfff)),
    (FCOS, (0x96cbe3f9990e91a8, 0x4001), (0x8000000000000000, 0x3fff), (0xd8d66c2ebeb5d4c6, 0x3fc0)),
    (FTAN, (0x96cbe3f9990e91a8, 0x4001), (0x8000000000000000, 0x3fff), (0x971e224f6c0521c6, 0xc03d)),
    (FSIN, (0xafeddf4ddd3ba9ee, 0x4002), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0xbfff)),
    (FCOS, (0xafeddf4ddd3ba9ee, 0x4002), (0x8000000000000000, 0x3fff), (0xb0b658e8430264dc, 0xbfc0)),
    (FTAN, (0xafeddf4ddd3ba9ee, 0x4002), (0x8000000000000000, 0x3fff), (0xb96e6d3a6649930e, 0x403d)),
    (FSIN, (0xc4597b8254a04da8, 0x4009), (0x8000000000000000, 0x3fff), (0xefac8787885217b7, 0x3fc8)),
    (FCOS, (0xc4597b8254a04da8, 0x4009), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0x3fff)),
    (FTAN, (0xc4597b8254a04da8, 0x4009), (0x8000000000000000, 0x3fff), (0xefac8787885217b7, 0x3fc8)),
    (FSIN, (0xbb40e64d96fcb08f, 0x401d), (0x8000000000000000, 0x3fff), (0xcd5225703cfd6a26, 0x3fdc)),
    (FCOS, (0xbb40e64d96fcb08f, 0x401d), (0x8000000000000000, 0x3fff), (0x8000000000000000, 0x3fff)),
    (FTAN, (0xbb40e64d96fcb08f, 0x401d), (0x8000000000000000, 0x3fff), (0xcd5225703cfd6a26, 0x3fdc)),
    (FSIN, (0xd145a8fe3dbe2f39, 0x4039), (0x8000000000000000, 0x3fff), (0xc233fc9e9940df6d, 0x3ff8)),
    (FCOS, (0xd145a8fe3dbe2f39, 0x4039), (0x8000000000000000, 0x3fff), (0xfffb655ebb4fb121, 0x3ffe)),
    (FTAN, (0xd145a8fe3dbe2f39, 0x4039), (0x8000000000000000, 0x3fff), (0xc2377acc3d516aa1, 0x3ff8)),
    (FYL2X, (0x8000000000000001, 0x3fff), (0x8000000000000000, 0x3fff), (0xb8aa3b295c17f0bb, 0x3fc0)),
    (FYL2X, (0xffffffffffffffff, 0x3ffe), (0x8000000000000000, 0x3fff), (0xb8aa3b295c17f0bc, 0xbfbf)),
    (FYL2X, (0x8000000000000003, 0x3fff), (0x8000000000000000, 0x3fff), (0x8a7fac5f0511f48b, 0x3fc2)),
    (FYL2X, (0xfffffffffffffffd, 0x3ffe), (0x8000000000000000, 0x3fff), (0x8a7fac5f0511f48e, 0xbfc1)),
    (FYL2X, (0x8000000000bc614e, 0x3fff), (0x8000000000000000, 0x3fff), (0x87e33436a7f0156b, 0x3fd8)),
    (FYL2X, (0xffffffffff439eb2, 0x3ffe), (0x8000000000000000, 0x3fff), (0x87e33436a886132c, 0xbfd7)),
    (FSIN, (0xdeadbeefcafebabe, 0x017f), (0x8000000000000000, 0x3fff), (0xdeadbeefcafebabe, 0x017f)),
    (FSIN, (0xdeadbeefcafebabe, 0x3fb9), (0x8000000000000000, 0x3fff), (0xdeadbeefcafebabe, 0x3fb9)),
    (FYL2XP1, (0xdeadbeefcafebabe, 0x3fb9), (0x8000000000000000, 0x3fff), (0xa0a0f4132a13ff31, 0x3fba)),
    (FSIN, (0xdeadbeefcafebabe, 0x3feb), (0x8000000000000000, 0x3fff), (0xdeadbeefca8e6850, 0x3feb)),
    (FYL2XP1, (0xdeadbeefcafebabe, 0x3feb), (0x8000000000000000, 0x3fff), (0xa0a0eb57a1325360, 0x3fec)),
];

fn run(emit: Emit, st0: Raw80, st1: Raw80) -> Machine {
    run_with(0x37f, emit, st0, st1)
}

fn run_with(fcw: u16, emit: Emit, st0: Raw80, st1: Raw80) -> Machine {
    let mut m = Machine::new();
    m.cpu.fpu.fcw = fcw;
    m.cpu.fpu.push(st1);
    m.cpu.fpu.push(st0);
    m.run(emit).unwrap();
    m
}

#[test]
fn results_are_correctly_rounded() {
    for (n, (emit, st0, st1, expect)) in VECTORS.iter().enumerate() {
        let m = run(*emit, *st0, *st1);
        assert_eq!(m.cpu.fpu.st(0), *expect, "vector {n}: {st0:x?} {st1:x?}");
        assert_eq!(m.cpu.fpu.fsw & sw::FLAGS, sw::PE, "vector {n}");
    }
}

#[test]
fn rounding_control_brackets_the_value() {
    for (emit, st0, st1, _) in VECTORS {
        let at = |rc: u16| run_with(0x37f | rc << 10, *emit, *st0, *st1).cpu.fpu;
        let (down, up, zero) = (at(1), at(2), at(3));
        let (d, u) = (down.st(0), up.st(0));
        let (low, high) = if d.1 & 0x8000 == 0 { (d, u) } else { (u, d) };
        let next = if low.0 == u64::MAX { (1 << 63, low.1 + 1) } else { (low.0 + 1, low.1) };
        assert_eq!(high, next, "{st0:x?} {st1:x?}");
        assert_eq!(zero.st(0), low);
    }
}

const ONE: Raw80 = (1 << 63, 0x3fff);
const MINUS: u16 = 0x8000;
const INF: Raw80 = (1 << 63, 0x7fff);
const ZERO: Raw80 = (0, 0);
const PI: Raw80 = (0xc90f_daa2_2168_c235, 0x4000);

fn neg(v: Raw80) -> Raw80 {
    (v.0, v.1 ^ MINUS)
}

#[test]
fn exact_results_raise_nothing() {
    let eight = (1 << 63, 0x4002);
    let three = (3 << 62, 0x4000);
    for (emit, st0, st1, expect) in [
        (F2XM1, ONE, ZERO, ONE),
        (F2XM1, neg(ONE), ZERO, neg((1 << 63, 0x3ffe))),
        (F2XM1, neg(ZERO), ZERO, neg(ZERO)),
        (FSIN, neg(ZERO), ZERO, neg(ZERO)),
        (FCOS, ZERO, ZERO, ONE),
        (FYL2X, eight, ONE, three),
        (FYL2X, ONE, neg(three), neg(ZERO)),
        (FYL2X, INF, neg(ONE), neg(INF)),
        (FYL2XP1, neg(ZERO), ONE, neg(ZERO)),
        (FPATAN, ONE, neg(ZERO), neg(ZERO)),
        (FPATAN, INF, ONE, ZERO),
    ] {
        let m = run(emit, st0, st1);
        assert_eq!(m.cpu.fpu.st(0), expect, "{st0:x?} {st1:x?}");
        assert_eq!(m.cpu.fpu.fsw & sw::FLAGS, 0, "{st0:x?} {st1:x?}");
    }
}

#[test]
fn special_operands() {
    for (emit, st0, st1, expect, flags) in [
        (FSIN, INF, ZERO, INDEFINITE, sw::IE),
        (FCOS, neg(INF), ZERO, INDEFINITE, sw::IE),
        (FYL2X, ZERO, ONE, neg(INF), sw::ZE),
        (FYL2X, ZERO, ZERO, INDEFINITE, sw::IE),
        (FYL2X, neg(ONE), ONE, INDEFINITE, sw::IE),
        (FYL2X, ONE, INF, INDEFINITE, sw::IE),
        (FPATAN, neg(ONE), ZERO, PI, sw::PE),
        (FPATAN, neg(INF), neg(INF), neg((0x96cb_e3f9_990e_91a8, 0x4000)), sw::PE),
        (FPATAN, INF, INF, (PI.0, 0x3ffe), sw::PE),
        // A signalling NaN becomes quiet.
        (FSIN, (1 << 63 | 1, 0x7fff), ZERO, (3 << 62 | 1, 0x7fff), sw::IE),
        // Unnormals are invalid.
        (FSIN, (1, 0x3fff), ZERO, INDEFINITE, sw::IE),
    ] {
        let m = run(emit, st0, st1);
        assert_eq!(m.cpu.fpu.st(0), expect, "{st0:x?} {st1:x?}");
        assert_eq!(m.cpu.fpu.fsw & sw::FLAGS, flags, "{st0:x?} {st1:x?}");
    }
}

#[test]
fn large_angles_set_c2_and_change_nothing() {
    let large = (1 << 63, 0x3fff + 63);
    for emit in [FSIN, FCOS, FPTAN, FSINCOS] {
        let m = run(emit, large, ONE);
        assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (large, 6));
        assert_ne!(m.cpu.fpu.fsw & sw::C2, 0);
        let m = run(emit, (u64::MAX, 0x3fff + 62), ONE);
        assert_eq!(m.cpu.fpu.fsw & sw::C2, 0);
    }
}

#[test]
fn pairs_push_and_agree_with_single_functions() {
    let m = run(FSINCOS, PI, ONE);
    assert_eq!(m.cpu.fpu.top(), 5);
    assert_eq!(m.cpu.fpu.st(0), run(FCOS, PI, ONE).cpu.fpu.st(0));
    assert_eq!(m.cpu.fpu.st(1), run(FSIN, PI, ONE).cpu.fpu.st(0));
    let m = run(FPTAN, ONE, ONE);
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (ONE, 5));
}

#[test]
fn pairs_need_a_free_register() {
    let mut m = Machine::new();
    (0..8).for_each(|_| m.cpu.fpu.push(ONE));
    m.run(FSINCOS).unwrap();
    assert_eq!(m.cpu.fpu.fsw & (sw::IE | sw::SF | sw::C1), sw::IE | sw::SF | sw::C1);
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.st(1)), (INDEFINITE, INDEFINITE));
    let mut m = Machine::new();
    (0..8).for_each(|_| m.cpu.fpu.push(ONE));
    m.cpu.fpu.fcw &= !sw::IE;
    m.run(FSINCOS).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (ONE, 0));
}

#[test]
fn denormal_operands() {
    // sin x of a denormal is just below x: rounds to x, tiny and inexact.
    let m = run(FSIN, (5, 0), ONE);
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.fsw & sw::FLAGS), ((5, 0), sw::DE | sw::UE | sw::PE));
    let m = run_with(0x37f & !sw::DE, FSIN, (5, 0), ONE);
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.fsw & sw::FLAGS), ((5, 0), sw::DE));
    assert_ne!(m.cpu.fpu.fsw & sw::ES, 0);
}
